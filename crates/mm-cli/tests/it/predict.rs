//! `mm predict` and `mm eval`: the same numbers as those of the run.

use crate::support::{NAMES, Place, Rows, on_file};
use serde_json::Value;

/// A finished run on the CSV file, with its rows.
fn trained(sets: &[&str]) -> (Place, Rows) {
    let (place, rows) = (Place::new(), Rows::new());
    place.file("set.csv", rows.csv().join("\n"));
    place.file("c.toml", on_file("csv", "set.csv"));
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    place.ok(&[&["train", "c.toml", "--out", "run", "-q"], &sets[..]].concat());
    (place, rows)
}

fn predict(place: &Place, name: &str, text: impl AsRef<[u8]>) -> Vec<Value> {
    place.file(name, text);
    let out = place.ok(&["predict", "run", name, "--format", "jsonl"]);
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn probabilities(p: &Value) -> Vec<f64> {
    p["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect()
}

fn near(a: &Value, b: &Value, tolerance: f64) -> bool {
    a["class"] == b["class"]
        && probabilities(a).iter().zip(probabilities(b)).all(|(a, b)| (a - b).abs() <= tolerance)
}

#[test]
fn predictions_are_those_of_the_run() {
    for sets in [
        &["method.kind=mlb"][..],
        &["method.kind=multimodal-loss", "model.encoder.norm=batch"],
        &["model.fusion.kind=transformer", "train.precision=f64"],
    ] {
        let (place, rows) = trained(sets);
        let predicted = predict(&place, "test.csv", rows.inputs_csv(Rows::TEST));
        let saved = place.json("run/predictions.json");
        assert_eq!(predicted.len(), 20);
        for (i, p) in predicted.iter().enumerate() {
            let row = Rows::TEST.start + i;
            assert_eq!(p["id"], format!("r{row}"));
            assert_eq!(saved["test"]["ids"][i], row);
            assert_eq!(saved["labels"][i], rows.y[row]);
            assert_eq!(p["class"], NAMES[saved["predicted"][i].as_u64().unwrap() as usize]);
            let logits: Vec<f64> =
                saved["test"]["logits"][i].as_array().unwrap().iter().map(|z| z.as_f64().unwrap()).collect();
            let total: f64 = logits.iter().map(|z| z.exp()).sum();
            let found = probabilities(p);
            assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(found.iter().zip(&logits).all(|(p, z)| (p - z.exp() / total).abs() < 1e-9));
            let there = if row.is_multiple_of(5) { vec!["a"] } else { vec!["a", "b"] };
            assert_eq!(p["present"], serde_json::json!(there));
        }
    }
}

#[test]
fn a_row_alone_is_predicted_as_among_others() {
    let (place, rows) = trained(&["method.kind=opm+ogm", "model.encoder.norm=batch"]);
    let all = predict(&place, "all.csv", rows.inputs_csv(0..90));
    for row in [0, 1, 42, 89] {
        let alone = predict(&place, "one.csv", rows.inputs_csv([row]));
        assert_eq!(alone[0]["id"], all[row]["id"]);
        assert!(near(&alone[0], &all[row], 1e-6), "{} is not {}", alone[0], all[row]);
    }
}

#[test]
fn a_tensor_file_says_the_same_as_a_table() {
    let (place, rows) = trained(&[]);
    let table = predict(&place, "in.csv", rows.inputs_csv(10..40));
    let tensors = predict(&place, "in.safetensors", rows.tensors(10..40, false).bytes());
    assert_eq!(table.len(), 30);
    for (i, (a, b)) in table.iter().zip(&tensors).enumerate() {
        assert_eq!(
            (a["id"].as_str(), b["id"].as_str()),
            (Some(&*format!("r{}", i + 10)), Some(&*(i + 10).to_string()))
        );
        assert_eq!(a["probabilities"], b["probabilities"]);
        assert_eq!(a["present"], b["present"]);
    }
    let unnamed = rows.tensors(10..40, false).without("id").bytes();
    assert_eq!(predict(&place, "in.safetensors", unnamed)[3]["id"], "3");
}

#[test]
fn a_modality_may_be_missing_everywhere_or_in_a_row() {
    let (place, rows) = trained(&["method.kind=mlb"]);
    let cells = |row: usize| rows.a[row].map(|v| v.to_string()).join(",");
    let (mut without, mut empty) = ("a:0,a:1,a:2,a:3\n".to_owned(), "a:0,a:1,a:2,a:3,b_0,b_1\n".to_owned());
    for row in 0..9 {
        without += &[&cells(row), "\n"].concat();
        empty += &[&cells(row), ",,\n"].concat();
    }
    let without = predict(&place, "in.csv", without);
    assert_eq!(without, predict(&place, "in.csv", empty));
    assert_eq!(
        without,
        predict(&place, "in.safetensors", rows.tensors(0..9, false).without("x_b").without("id").bytes())
    );
    assert!(without.iter().all(|p| p["present"] == serde_json::json!(["a"])));
    // Rows 0 and 5 lack it anyway; the others are decided otherwise with it.
    let whole = predict(&place, "in.csv", rows.inputs_csv(0..9));
    for (row, (p, q)) in without.iter().zip(&whole).enumerate() {
        assert_eq!(p["probabilities"] == q["probabilities"], row.is_multiple_of(5), "row {row}");
    }
    // The other one alone, its columns in another order of the file.
    let b = rows.b[1].unwrap();
    let only = predict(&place, "in.csv", format!("b_0,id,b_1\n{},\"x,\"\"y\",{}\n", b[0], b[1]));
    assert_eq!((&only[0]["id"], &only[0]["present"]), (&"x,\"y".into(), &serde_json::json!(["b"])));
}

#[test]
fn the_table_of_predictions() {
    let (place, rows) = trained(&[]);
    let text = rows.inputs_csv(0..3).replace("r1,", "\"r,1\",");
    let lines = predict(&place, "in.csv", &text);
    let out = place.ok(&["predict", "run", "in.csv"]);
    let table: Vec<&str> = out.lines().collect();
    assert_eq!(table[0], "id,class,present,p_cat,\"p_dog, big\",p_emu");
    let p = probabilities(&lines[1]);
    let class = lines[1]["class"].as_str().unwrap();
    let class = if class.contains(',') { format!("\"{class}\"") } else { class.to_owned() };
    assert_eq!(table[2], format!("\"r,1\",{class},a|b,{:.6},{:.6},{:.6}", p[0], p[1], p[2]));
    let best = (0..3).max_by(|&i, &j| p[i].total_cmp(&p[j])).unwrap();
    assert_eq!(lines[1]["class"], NAMES[best]);

    assert_eq!(place.ok(&["predict", "run", "in.csv", "--out", "deep/out.csv"]), "");
    assert_eq!(place.read("deep/out.csv"), out);
    // What is no plain file is written to, not replaced.
    std::os::unix::fs::symlink("deep/out.csv", place.path("link")).unwrap();
    place.ok(&["predict", "run", "in.csv", "--format", "jsonl", "--out", "link"]);
    assert!(std::fs::symlink_metadata(place.path("link")).unwrap().is_symlink());
    assert_eq!(place.read("deep/out.csv").lines().count(), 3);
    assert_eq!(place.ok(&["predict", "run", "in.csv", "--out", "/dev/stdout"]), out);
}

#[test]
fn classes_without_names_are_numbered() {
    let place = Place::new();
    let rows = Rows::new();
    place.file("set.safetensors", rows.tensors(0..90, true).bytes());
    place.file("c.toml", on_file("features", "set.safetensors"));
    place.ok(&["train", "c.toml", "--out", "run", "-q"]);
    assert_eq!(
        place.json("run/model/config.json")["id2label"],
        serde_json::json!({"0": "0", "1": "1", "2": "2"})
    );
    let predicted = predict(&place, "in.safetensors", rows.tensors(70..90, false).bytes());
    let saved = place.json("run/predictions.json");
    for (i, p) in predicted.iter().enumerate() {
        assert_eq!(p["class"], saved["predicted"][i].to_string());
    }
}

#[test]
fn eval_reproduces_the_result() {
    for sets in [&["method.kind=sum-ce"][..], &["method.kind=lfm-learned", "method.bilevel.held_out=8"]] {
        let (place, _) = trained(sets);
        let result = place.json("run/result.json");
        for part in ["test", "val"] {
            let out = place.ok(&["eval", "run", "--part", part, "--json"]);
            assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), result[part]);
        }
        let text = place.ok(&["eval", "run"]);
        let accuracy = 100.0 * result["test"]["accuracy"].as_f64().unwrap();
        assert!(text.starts_with(&format!("test: accuracy {accuracy:.2} %, macro F1 ")), "{text}");
        let train = place.ok(&["eval", "run", "--part", "train", "--json"]);
        let train: Value = serde_json::from_str(&train).unwrap();
        let rows: u64 = train["confusion"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|r| r.as_array().unwrap())
            .map(|n| n.as_u64().unwrap())
            .sum();
        assert_eq!(rows, 50);
    }
}
