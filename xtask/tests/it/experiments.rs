//! The five experiment files, as they are.

use crate::{Bench, code, finish, stderr, stdout};

/// The data folder with empty files where the experiment looks for its own.
fn with_data(bench: &Bench, file: &str) -> String {
    let path = bench.path("data").join(file);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
    std::fs::write(path, "").expect("writable");
    format!("--data {}", bench.path("data").display())
}

#[test]
fn every_experiment_expands_into_the_runs_it_should() {
    // (unimodal + ensemble + 11 fused) x seeds x folds; protein is never trained alone.
    let expected = [
        ("synthetic", "", (2 + 1 + 11) * 8),
        ("cremad-perception", "cremad-perception/cremad-perception.safetensors", (2 + 1 + 11) * 3 * 3),
        ("ravdess-features", "ravdess-av/ravdess-av.safetensors", (2 + 1 + 11) * 3 * 5),
        ("mosi", "mosi-bclstm/mosi.safetensors", (3 + 1 + 11) * 5),
        ("tcga-breast", "tcga-breast/tcga-breast.safetensors", (2 + 1 + 11) * 5),
    ];
    let bench = Bench::new();
    for (name, file, runs) in expected {
        let data = if file.is_empty() { String::new() } else { with_data(&bench, file) };
        let output = finish(bench.reproduce(&format!("{name} --dry-run {data}")));
        assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        let last = stdout(&output).lines().last().map(str::to_owned);
        assert_eq!(last, Some(format!("{runs} runs, 0 done")), "{name}");
    }
    assert!(bench.calls().is_empty() && !bench.path("out").exists(), "a dry run writes nothing");
}

#[test]
fn missing_data_say_where_to_get_them() {
    let bench = Bench::new();
    let output = finish(bench.reproduce(&format!("mosi --data {}", bench.path("nowhere").display())));
    assert_eq!(code(&output), 2);
    let message = stderr(&output);
    for part in [
        "the experiment mosi needs data: there is no mosi-bclstm/mosi.safetensors in ",
        "DIR/mosi-bclstm/mosi.safetensors",
        "video_id                   I64 (2199)",
        "github.com/declare-lab/multimodal-deep-learning",
    ] {
        assert!(message.contains(part), "`{part}` is not in:\n{message}");
    }
}

#[test]
fn folds_differ_in_the_split_and_the_tuned_rate_only() {
    let bench = Bench::new();
    let data = with_data(&bench, "ravdess-av/ravdess-av.safetensors");
    let output = finish(bench.reproduce(&format!("ravdess-features --method joint --seeds 1 {data}")));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let mut splits = Vec::new();
    let mut rests = Vec::new();
    let mut configs: Vec<_> = std::fs::read_dir(bench.path("out/configs")).expect("configs").collect();
    configs.sort_by_key(|entry| entry.as_ref().expect("entry").file_name());
    for entry in configs {
        let text = std::fs::read_to_string(entry.expect("entry").path()).expect("readable");
        let mut config: toml::Table = toml::from_str(&text).expect("TOML");
        let split = config["data"].as_table_mut().expect("a table").remove("split").expect("a split");
        let rate = config["optim"].as_table_mut().expect("a table").remove("lr").expect("a rate");
        assert!(
            [0.005, 0.02, 0.05].contains(&rate.as_float().expect("a number")),
            "{rate} is not of the grid"
        );
        splits.push((split["test_fold"].as_integer(), split["val_fold"].as_integer()));
        rests.push(config);
    }
    let expected: Vec<_> = (0..5).map(|k| (Some(k), Some((k + 1) % 5))).collect();
    assert_eq!(splits, expected);
    assert!(rests.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn unknown_names_are_refused() {
    let bench = Bench::new();
    for (line, says) in [
        ("cremad-percep", "there is no experiment `cremad-percep`; did you mean `cremad-perception`?"),
        ("--method mlbb", "did you mean `mlb`?"),
        ("--fusion late", "did you mean `late-linear`?"),
        ("--folds 2", "the experiment synthetic has no folds"),
    ] {
        let output = finish(bench.reproduce(line));
        assert_eq!(code(&output), 2, "{line}");
        assert!(stderr(&output).contains(says), "{line}: {}", stderr(&output));
    }
}
