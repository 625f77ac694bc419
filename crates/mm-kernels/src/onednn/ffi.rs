//! The functions of oneDNN 2 that a convolution needs, declared by hand after `oneapi/dnnl/dnnl.h` of 2.6.3.
//!
//! Descriptors are structures that only the library fills and reads: here they are bytes of the right size.
//! Their layout is that of every oneDNN 2.x; `library::version` refuses another.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// An engine, a stream, a memory, a primitive or its description: what they point to is the library's.
pub(super) type Raw = *mut c_void;

/// `dnnl_dims_t`.
pub(super) type Dims = [i64; 12];

/// `dnnl_memory_desc_t`: plain data.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct MemoryDesc(pub(super) [u8; 696]);

/// `dnnl_convolution_desc_t`: plain data.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct ConvolutionDesc(pub(super) [u8; 5976]);

/// `dnnl_exec_arg_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ExecArg {
    pub(super) arg: c_int,
    pub(super) memory: Raw,
}

/// `dnnl_version_t`.
#[repr(C)]
pub(super) struct Version {
    pub(super) major: c_int,
    pub(super) minor: c_int,
    pub(super) patch: c_int,
    hash: *const c_char,
    cpu_runtime: c_uint,
    gpu_runtime: c_uint,
}

// Values of enumerations and macros, with their names there.
pub(super) const CPU: c_int = 1; // dnnl_cpu
pub(super) const IN_ORDER: c_uint = 1; // dnnl_stream_in_order
pub(super) const F32: c_int = 3; // dnnl_f32
pub(super) const TAG_ANY: c_int = 1; // dnnl_format_tag_any
pub(super) const TAG_X: c_int = 2; // dnnl_x
pub(super) const TAG_OIHW: c_int = 5; // dnnl_oihw
pub(super) const TAG_GOIHW: c_int = 7; // dnnl_goihw
pub(super) const TAG_NHWC: c_int = 20; // dnnl_nhwc
pub(super) const TRAINING: c_int = 64; // dnnl_forward_training
pub(super) const DIRECT: c_int = 1; // dnnl_convolution_direct
pub(super) const WEIGHTS: c_int = 131; // dnnl_query_weights_md
pub(super) const DIFF_WEIGHTS: c_int = 132; // dnnl_query_diff_weights_md
pub(super) const SCRATCHPAD: c_int = 136; // dnnl_query_scratchpad_md
#[cfg(test)]
pub(super) const IMPLEMENTATION: c_int = 8; // dnnl_query_impl_info_str
pub(super) const SCRATCHPAD_USER: c_int = 1; // dnnl_scratchpad_mode_user
pub(super) const ARG_SRC: c_int = 1; // DNNL_ARG_SRC, DNNL_ARG_FROM
pub(super) const ARG_DST: c_int = 17; // DNNL_ARG_DST, DNNL_ARG_TO
pub(super) const ARG_WEIGHTS: c_int = 33; // DNNL_ARG_WEIGHTS
pub(super) const ARG_BIAS: c_int = 41; // DNNL_ARG_BIAS
pub(super) const ARG_SCRATCHPAD: c_int = 80; // DNNL_ARG_SCRATCHPAD
pub(super) const ARG_DIFF_SRC: c_int = 129; // DNNL_ARG_DIFF_SRC
pub(super) const ARG_DIFF_DST: c_int = 145; // DNNL_ARG_DIFF_DST
pub(super) const ARG_DIFF_WEIGHTS: c_int = 161; // DNNL_ARG_DIFF_WEIGHTS

// The libraries are named by `build.rs`.
unsafe extern "C" {
    pub(super) fn dnnl_version() -> *const Version;

    pub(super) fn dnnl_engine_create(engine: *mut Raw, kind: c_int, index: usize) -> c_int;
    pub(super) fn dnnl_engine_destroy(engine: Raw) -> c_int;
    pub(super) fn dnnl_stream_create(stream: *mut Raw, engine: Raw, flags: c_uint) -> c_int;
    pub(super) fn dnnl_stream_wait(stream: Raw) -> c_int;
    pub(super) fn dnnl_stream_destroy(stream: Raw) -> c_int;

    pub(super) fn dnnl_memory_desc_init_by_tag(
        desc: *mut MemoryDesc,
        ndims: c_int,
        dims: *const i64,
        data_type: c_int,
        tag: c_int,
    ) -> c_int;
    pub(super) fn dnnl_memory_desc_equal(a: *const MemoryDesc, b: *const MemoryDesc) -> c_int;
    pub(super) fn dnnl_memory_desc_get_size(desc: *const MemoryDesc) -> usize;
    pub(super) fn dnnl_memory_create(
        memory: *mut Raw,
        desc: *const MemoryDesc,
        engine: Raw,
        handle: *mut c_void,
    ) -> c_int;
    pub(super) fn dnnl_memory_set_data_handle(memory: Raw, handle: *mut c_void) -> c_int;
    pub(super) fn dnnl_memory_destroy(memory: Raw) -> c_int;

    pub(super) fn dnnl_dilated_convolution_forward_desc_init(
        desc: *mut ConvolutionDesc,
        prop_kind: c_int,
        alg_kind: c_int,
        src: *const MemoryDesc,
        weights: *const MemoryDesc,
        bias: *const MemoryDesc,
        dst: *const MemoryDesc,
        strides: *const i64,
        dilates: *const i64,
        padding_l: *const i64,
        padding_r: *const i64,
    ) -> c_int;
    pub(super) fn dnnl_dilated_convolution_backward_data_desc_init(
        desc: *mut ConvolutionDesc,
        alg_kind: c_int,
        diff_src: *const MemoryDesc,
        weights: *const MemoryDesc,
        diff_dst: *const MemoryDesc,
        strides: *const i64,
        dilates: *const i64,
        padding_l: *const i64,
        padding_r: *const i64,
    ) -> c_int;
    pub(super) fn dnnl_dilated_convolution_backward_weights_desc_init(
        desc: *mut ConvolutionDesc,
        alg_kind: c_int,
        src: *const MemoryDesc,
        diff_weights: *const MemoryDesc,
        diff_bias: *const MemoryDesc,
        diff_dst: *const MemoryDesc,
        strides: *const i64,
        dilates: *const i64,
        padding_l: *const i64,
        padding_r: *const i64,
    ) -> c_int;

    pub(super) fn dnnl_primitive_attr_create(attr: *mut Raw) -> c_int;
    pub(super) fn dnnl_primitive_attr_set_scratchpad_mode(attr: Raw, mode: c_int) -> c_int;
    pub(super) fn dnnl_primitive_attr_destroy(attr: Raw) -> c_int;
    pub(super) fn dnnl_primitive_desc_create(
        desc: *mut Raw,
        op_desc: *const c_void,
        attr: Raw,
        engine: Raw,
        hint_forward: Raw,
    ) -> c_int;
    pub(super) fn dnnl_reorder_primitive_desc_create(
        desc: *mut Raw,
        src: *const MemoryDesc,
        src_engine: Raw,
        dst: *const MemoryDesc,
        dst_engine: Raw,
        attr: Raw,
    ) -> c_int;
    pub(super) fn dnnl_primitive_desc_query_md(desc: Raw, what: c_int, index: c_int) -> *const MemoryDesc;
    #[cfg(test)]
    pub(super) fn dnnl_primitive_desc_query(
        desc: Raw,
        what: c_int,
        index: c_int,
        result: *mut c_void,
    ) -> c_int;
    pub(super) fn dnnl_primitive_desc_destroy(desc: Raw) -> c_int;
    pub(super) fn dnnl_primitive_create(primitive: *mut Raw, desc: Raw) -> c_int;
    pub(super) fn dnnl_primitive_execute(
        primitive: Raw,
        stream: Raw,
        nargs: c_int,
        args: *const ExecArg,
    ) -> c_int;
    pub(super) fn dnnl_primitive_destroy(primitive: Raw) -> c_int;

    /// Of OpenMP: how many threads parallel regions that this thread starts have from now on.
    pub(super) fn omp_set_num_threads(threads: c_int);
}
