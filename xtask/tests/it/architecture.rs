//! The absences that ARCHITECTURE.md promises, read from the manifests.

use std::collections::BTreeMap;
use std::path::Path;
use toml::Table;

/// The normal dependencies of every package, by name.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut folders: Vec<_> =
        root.join("crates").read_dir().expect("crates").map(|e| e.expect("an entry").path()).collect();
    folders.push(root.join("xtask"));
    let read = |folder: &Path| {
        let text = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
        let manifest: Table = text.parse().expect("TOML");
        let names = |t: &Table| t.keys().cloned().collect::<Vec<_>>();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        (name, manifest.get("dependencies").and_then(|d| d.as_table()).map(names).unwrap_or_default())
    };
    folders.iter().map(|f| read(f)).collect()
}

#[test]
fn siblings_do_not_depend_on_each_other() {
    let all = dependencies();
    let siblings = ["mm-encoders", "mm-fusion", "mm-balance", "mm-data", "mm-metrics"];
    for name in siblings {
        for other in siblings {
            assert!(!all[name].iter().any(|d| d == other), "{name} depends on {other}");
        }
        for above in ["mm-train", "mm-cli"] {
            assert!(!all[name].iter().any(|d| d == above), "{name} depends on {above}");
        }
    }
    assert!(!all["mm-core"].iter().any(|d| siblings.contains(&d.as_str())));
    assert!(
        !all["mm-kernels"].iter().any(|d| d.starts_with("mm-")),
        "mm-kernels knows nothing of the others"
    );
}

#[test]
fn no_candle_where_builds_must_be_quick() {
    let all = dependencies();
    assert!(all["mm-metrics"].is_empty(), "mm-metrics uses the standard library only");
    let ours: Vec<_> = all["xtask"].iter().filter(|d| d.starts_with("mm-")).collect();
    assert_eq!(ours, ["mm-metrics"]);
    for name in ["xtask", "mm-metrics"] {
        assert!(!all[name].iter().any(|d| d.starts_with("candle")), "{name} depends on candle");
    }
}

#[test]
fn no_library_uses_candle_nn() {
    for (name, dependencies) in dependencies() {
        assert!(
            !dependencies.iter().any(|d| d == "candle-nn"),
            "{name}: candle-nn has traps; it is for tests"
        );
    }
}
