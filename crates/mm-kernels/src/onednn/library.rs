//! The objects of oneDNN: made with their status checked, destroyed on drop, each with a type of its own.

use super::ffi::{self, ConvolutionDesc, Dims, ExecArg, MemoryDesc, Raw};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr::{null, null_mut};

/// What the library refused.
#[derive(Debug)]
pub(super) enum Failure {
    /// A function did not succeed.
    Status(&'static str, c_int),
    /// A function succeeded and gave nothing.
    Nothing(&'static str),
    /// The library is not one whose descriptors are known here.
    Version([c_int; 3]),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Status(function, status) => {
                let name = match status {
                    1 => "out of memory",
                    2 => "invalid arguments",
                    3 => "unimplemented",
                    4 => "iterator ends",
                    5 => "runtime error",
                    6 => "not required",
                    _ => "a status that oneDNN 2.6 does not have",
                };
                write!(f, "{function} failed: {name} ({status})")
            }
            Self::Nothing(function) => write!(f, "{function} gave a null pointer"),
            Self::Version([major, minor, patch]) => write!(
                f,
                "the library loaded is oneDNN {major}.{minor}.{patch}, but the feature `onednn` needs 2.x: \
                 remove the other from the library path, or build without the feature"
            ),
        }
    }
}

fn check(function: &'static str, status: c_int) -> Result<(), Failure> {
    if status == 0 { Ok(()) } else { Err(Failure::Status(function, status)) }
}

/// Fails on a library other than oneDNN 2.
pub(super) fn version() -> Result<(), Failure> {
    // SAFETY: takes nothing, and gives a pointer to a structure that lives as long as the library.
    let version = unsafe { ffi::dnnl_version().as_ref() }.ok_or(Failure::Nothing("dnnl_version"))?;
    if version.major == 2 {
        Ok(())
    } else {
        Err(Failure::Version([version.major, version.minor, version.patch]))
    }
}

/// Sets the number of threads on which primitives that this thread makes or executes run.
pub(super) fn use_threads(threads: usize) {
    // SAFETY: a positive number, as OpenMP asks for; it changes a setting of the calling thread alone.
    unsafe { ffi::omp_set_num_threads(threads.clamp(1, 1 << 16) as c_int) };
}

/// An object of the library, and the function that destroys it.
struct Object {
    raw: Raw,
    destroy: unsafe extern "C" fn(Raw) -> c_int,
}

// SAFETY: the library's objects belong to no thread (scratchpads, which would, are given by the caller), and
// none is reached from two threads at once: `Object` is not `Sync` nor `Clone`, and all live behind the lock
// of `super::with`.
unsafe impl Send for Object {}

impl Object {
    fn new(
        function: &'static str,
        destroy: unsafe extern "C" fn(Raw) -> c_int,
        create: impl FnOnce(*mut Raw) -> c_int,
    ) -> Result<Self, Failure> {
        let mut raw = null_mut();
        check(function, create(&raw mut raw))?;
        if raw.is_null() { Err(Failure::Nothing(function)) } else { Ok(Self { raw, destroy }) }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by the function that `destroy` belongs to, not null, and destroyed here only. The
        // status is of no use: the only failure is a null pointer.
        unsafe { (self.destroy)(self.raw) };
    }
}

/// The processor.
pub(super) struct Engine(Object);

impl Engine {
    pub(super) fn new() -> Result<Self, Failure> {
        // SAFETY: `p` is room for a pointer.
        let create = |p| unsafe { ffi::dnnl_engine_create(p, ffi::CPU, 0) };
        Object::new("dnnl_engine_create", ffi::dnnl_engine_destroy, create).map(Self)
    }
}

/// The order of execution. Must not outlive its engine.
pub(super) struct Stream(Object);

impl Stream {
    pub(super) fn new(engine: &Engine) -> Result<Self, Failure> {
        // SAFETY: `p` is room for a pointer, the engine lives.
        let create = |p| unsafe { ffi::dnnl_stream_create(p, engine.0.raw, ffi::IN_ORDER) };
        Object::new("dnnl_stream_create", ffi::dnnl_stream_destroy, create).map(Self)
    }
}

impl MemoryDesc {
    /// Numbers of `f32` in the order of a tag, which must be one for as many dimensions.
    pub(super) fn new(dims: &[usize], tag: c_int) -> Result<Self, Failure> {
        let (mut desc, dims, ndims) = (Self([0; 696]), padded(dims), dims.len() as c_int);
        let function = "dnnl_memory_desc_init_by_tag";
        // SAFETY: `desc` is room for a descriptor, `dims` holds the twelve numbers of a `dnnl_dims_t`.
        let status =
            unsafe { ffi::dnnl_memory_desc_init_by_tag(&raw mut desc, ndims, dims.as_ptr(), ffi::F32, tag) };
        check(function, status).map(|()| desc)
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        // SAFETY: a descriptor that the library wrote.
        unsafe { ffi::dnnl_memory_desc_get_size(self) }
    }

    /// Whether the same numbers lie in the same places.
    pub(super) fn is(&self, other: &Self) -> bool {
        // SAFETY: descriptors that the library wrote.
        unsafe { ffi::dnnl_memory_desc_equal(self, other) != 0 }
    }
}

/// Sizes as the library takes them.
pub(super) fn padded(values: &[usize]) -> Dims {
    let mut dims = [0; 12];
    dims.iter_mut().zip(values).for_each(|(d, &v)| *d = v as i64);
    dims
}

/// A descriptor and, during a call, where its numbers are. Must not outlive its engine.
pub(super) struct Memory(Object);

impl Memory {
    /// Memory that is nowhere yet.
    pub(super) fn new(engine: &Engine, desc: &MemoryDesc) -> Result<Self, Failure> {
        // SAFETY: `p` is room for a pointer, descriptor and engine live, and null is `DNNL_MEMORY_NONE`.
        let create = |p| unsafe { ffi::dnnl_memory_create(p, desc, engine.0.raw, null_mut()) };
        Object::new("dnnl_memory_create", ffi::dnnl_memory_destroy, create).map(Self)
    }
}

/// How a window moves; the arrays of the library's functions.
pub(super) struct Moves {
    pub(super) strides: Dims,
    /// Zero for taps side by side.
    pub(super) dilates: Dims,
    pub(super) before: Dims,
    pub(super) after: Dims,
}

/// The three convolutions of one geometry.
impl ConvolutionDesc {
    pub(super) fn forward(
        x: &MemoryDesc,
        w: &MemoryDesc,
        bias: Option<&MemoryDesc>,
        y: &MemoryDesc,
        m: &Moves,
    ) -> Result<Self, Failure> {
        let mut desc = Self([0; 5976]);
        // SAFETY: `desc` is room for a descriptor, the others were written by the library or (bias) are null,
        // which means none; the arrays are of the length of a `dnnl_dims_t`.
        let status = unsafe {
            ffi::dnnl_dilated_convolution_forward_desc_init(
                &raw mut desc,
                ffi::TRAINING,
                ffi::DIRECT,
                x,
                w,
                bias.map_or(null(), std::ptr::from_ref),
                y,
                m.strides.as_ptr(),
                m.dilates.as_ptr(),
                m.before.as_ptr(),
                m.after.as_ptr(),
            )
        };
        check("dnnl_dilated_convolution_forward_desc_init", status).map(|()| desc)
    }

    pub(super) fn grad_input(
        dx: &MemoryDesc,
        w: &MemoryDesc,
        dy: &MemoryDesc,
        m: &Moves,
    ) -> Result<Self, Failure> {
        let mut desc = Self([0; 5976]);
        // SAFETY: as in `forward`.
        let status = unsafe {
            ffi::dnnl_dilated_convolution_backward_data_desc_init(
                &raw mut desc,
                ffi::DIRECT,
                dx,
                w,
                dy,
                m.strides.as_ptr(),
                m.dilates.as_ptr(),
                m.before.as_ptr(),
                m.after.as_ptr(),
            )
        };
        check("dnnl_dilated_convolution_backward_data_desc_init", status).map(|()| desc)
    }

    pub(super) fn grad_weight(
        x: &MemoryDesc,
        dw: &MemoryDesc,
        dy: &MemoryDesc,
        m: &Moves,
    ) -> Result<Self, Failure> {
        let mut desc = Self([0; 5976]);
        // SAFETY: as in `forward`; null for the gradient of the bias means none.
        let status = unsafe {
            ffi::dnnl_dilated_convolution_backward_weights_desc_init(
                &raw mut desc,
                ffi::DIRECT,
                x,
                dw,
                null(),
                dy,
                m.strides.as_ptr(),
                m.dilates.as_ptr(),
                m.before.as_ptr(),
                m.after.as_ptr(),
            )
        };
        check("dnnl_dilated_convolution_backward_weights_desc_init", status).map(|()| desc)
    }
}

/// Settings of primitives: their scratch memory comes from the caller. (The library's own belongs to the
/// thread that made the primitive.)
pub(super) struct Attributes(Object);

impl Attributes {
    pub(super) fn new() -> Result<Self, Failure> {
        // SAFETY: `p` is room for a pointer.
        let create = |p| unsafe { ffi::dnnl_primitive_attr_create(p) };
        let attr = Object::new("dnnl_primitive_attr_create", ffi::dnnl_primitive_attr_destroy, create)?;
        // SAFETY: the attributes live.
        let status = unsafe { ffi::dnnl_primitive_attr_set_scratchpad_mode(attr.raw, ffi::SCRATCHPAD_USER) };
        check("dnnl_primitive_attr_set_scratchpad_mode", status).map(|()| Self(attr))
    }
}

/// An implementation that the library chose.
pub(super) struct Chosen(Object);

impl Chosen {
    pub(super) fn convolution(
        engine: &Engine,
        attributes: &Attributes,
        desc: &ConvolutionDesc,
        forward: Option<&Self>,
    ) -> Result<Self, Failure> {
        let (op, hint) = (std::ptr::from_ref(desc).cast::<c_void>(), forward.map_or(null_mut(), |f| f.0.raw));
        // SAFETY: `p` is room for a pointer, the descriptor was written by the library, which copies what it
        // needs of it; attributes, engine and hint live, and a null hint means none.
        let create =
            |p| unsafe { ffi::dnnl_primitive_desc_create(p, op, attributes.0.raw, engine.0.raw, hint) };
        Object::new("dnnl_primitive_desc_create", ffi::dnnl_primitive_desc_destroy, create).map(Self)
    }

    pub(super) fn reorder(
        engine: &Engine,
        attributes: &Attributes,
        from: &MemoryDesc,
        to: &MemoryDesc,
    ) -> Result<Self, Failure> {
        let e = engine.0.raw;
        // SAFETY: `p` is room for a pointer, the descriptors were written by the library, attributes and
        // engine live.
        let create =
            |p| unsafe { ffi::dnnl_reorder_primitive_desc_create(p, from, e, to, e, attributes.0.raw) };
        Object::new("dnnl_reorder_primitive_desc_create", ffi::dnnl_primitive_desc_destroy, create).map(Self)
    }

    /// The order of numbers that this implementation wants.
    pub(super) fn desc(&self, what: c_int) -> Result<MemoryDesc, Failure> {
        // SAFETY: the description lives, and so does for as long what it points to, which is copied here.
        let desc = unsafe { ffi::dnnl_primitive_desc_query_md(self.0.raw, what, 0).as_ref() };
        desc.copied().ok_or(Failure::Nothing("dnnl_primitive_desc_query_md"))
    }

    /// The library's name of the implementation.
    #[cfg(test)]
    pub(super) fn name(&self) -> Result<String, Failure> {
        let mut name: *const std::ffi::c_char = null();
        let function = "dnnl_primitive_desc_query";
        // SAFETY: this query writes a pointer to a string.
        let status = unsafe {
            ffi::dnnl_primitive_desc_query(self.0.raw, ffi::IMPLEMENTATION, 0, (&raw mut name).cast())
        };
        check(function, status)?;
        if name.is_null() {
            return Err(Failure::Nothing(function));
        }
        // SAFETY: a string of the library, ended by zero, that lives as long as the description.
        Ok(unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }
}

/// Numbers of a call: what they are to the primitive, their order, and where they are.
pub(super) type Argument<'a> = (c_int, &'a Memory, *mut c_void);

/// Something to execute. Must not outlive its engine.
pub(super) struct Primitive {
    object: Object,
    scratchpad: Memory,
    scratchpad_size: usize,
}

impl Primitive {
    pub(super) fn new(engine: &Engine, chosen: &Chosen) -> Result<Self, Failure> {
        // SAFETY: `p` is room for a pointer, the description lives.
        let create = |p| unsafe { ffi::dnnl_primitive_create(p, chosen.0.raw) };
        let object = Object::new("dnnl_primitive_create", ffi::dnnl_primitive_destroy, create)?;
        let desc = chosen.desc(ffi::SCRATCHPAD)?;
        Ok(Self { object, scratchpad: Memory::new(engine, &desc)?, scratchpad_size: desc.size() })
    }

    /// Bytes of scratch memory that [`Primitive::execute`] must be given.
    pub(super) fn scratchpad_size(&self) -> usize {
        self.scratchpad_size
    }

    /// Executes and waits until it is done.
    ///
    /// # Safety
    /// The memories are those that the primitive was made for, at most four. Each pointer is to as many bytes
    /// as the descriptor of its memory says, aligned for `f32`, which nobody else writes to during the call,
    /// nor reads where the primitive writes; and where its order has padding (a reordered weight), which may
    /// be written to. `scratch` is at least [`Primitive::scratchpad_size`] bytes, apart from the others.
    pub(super) unsafe fn execute(
        &self,
        stream: &Stream,
        arguments: &[Argument<'_>],
        scratch: *mut c_void,
    ) -> Result<(), Failure> {
        let none = ExecArg { arg: 0, memory: null_mut() };
        let (mut args, mut len) = ([none; 5], 0);
        let scratch = (self.scratchpad_size > 0).then_some((ffi::ARG_SCRATCHPAD, &self.scratchpad, scratch));
        for (arg, memory, pointer) in arguments.iter().copied().chain(scratch) {
            // SAFETY: the memory lives. The library reads nothing, and writes zeros to the padding, where
            // there is one: the caller says that it may.
            let status = unsafe { ffi::dnnl_memory_set_data_handle(memory.0.raw, pointer) };
            check("dnnl_memory_set_data_handle", status)?;
            args[len] = ExecArg { arg, memory: memory.0.raw };
            len += 1;
        }
        // SAFETY: primitive, stream and memories live, `args` holds `len` of them, and the caller vouches for
        // the numbers.
        let status = unsafe {
            ffi::dnnl_primitive_execute(self.object.raw, stream.0.raw, len as c_int, args.as_ptr())
        };
        check("dnnl_primitive_execute", status)?;
        // SAFETY: the stream lives.
        check("dnnl_stream_wait", unsafe { ffi::dnnl_stream_wait(stream.0.raw) })
    }
}
