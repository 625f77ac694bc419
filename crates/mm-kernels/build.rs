//! Links oneDNN where the feature `onednn` asks for it, and nothing otherwise.
#![allow(clippy::print_stdout)] // a build script talks to cargo in lines of its standard output

use std::env;
use std::path::PathBuf;

/// The name of the library that has the interface of oneDNN 2: that of oneDNN 3 is another.
const LIBRARY: &str = "libdnnl.so.2";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DNNL_LIB_DIR");
    if env::var_os("CARGO_FEATURE_ONEDNN").is_none() {
        return;
    }
    let given = env::var_os("DNNL_LIB_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let usual = [
        format!("/usr/lib/{arch}-linux-gnu"),
        "/usr/lib64".into(),
        "/usr/lib".into(),
        "/usr/local/lib".into(),
    ];
    let dirs = given.map_or_else(|| usual.iter().map(PathBuf::from).collect(), |dir| vec![dir]);
    match dirs.iter().find(|dir| dir.join("libdnnl.so").exists() && dir.join(LIBRARY).exists()) {
        Some(dir) => {
            println!("cargo::rustc-link-search=native={}", dir.display());
            println!("cargo::rustc-link-lib=dylib=dnnl");
            // Its threads: Debian's oneDNN runs on OpenMP.
            println!("cargo::rustc-link-lib=dylib=gomp");
        }
        None => println!(
            "cargo::error=the feature `onednn` needs libdnnl.so and {LIBRARY} (oneDNN 2), not found in \
             {dirs:?}: `apt-get install libdnnl-dev`, or set DNNL_LIB_DIR to their folder"
        ),
    }
}
