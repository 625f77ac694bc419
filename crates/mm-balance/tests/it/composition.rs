//! The table of compositions in the documentation against the rules.

use mm_balance::composition::{Refusal, objection};
use mm_balance::{MethodConfig, catalogue};

/// What stands in the table for a refusal.
fn letter(refusal: Refusal) -> char {
    match refusal {
        Refusal::OneModality => '1',
        Refusal::TwoDecisions => 'D',
        Refusal::WholeStep => 'S',
        Refusal::UnimodalLosses => 'U',
        Refusal::NoFusion => 'N',
        Refusal::TwoWeights => 'W',
        Refusal::UnseenFeatures => 'E',
        Refusal::NotFirst => 'F',
    }
}

/// Row before column, both with their defaults.
fn table() -> String {
    // `joint` adds nothing to anything; `unimodal` and `ensemble` stand alone.
    let composed = |name: &&str| !matches!(*name, "joint" | "unimodal" | "ensemble");
    let names: Vec<&str> = catalogue().iter().map(|entry| entry.name).filter(composed).collect();
    let methods: Vec<MethodConfig> = names
        .iter()
        .map(|name| toml::from_str(&format!("kind = \"{name}\"")).expect("a method with defaults"))
        .collect();
    let mut lines = Vec::new();
    for place in [10, 1] {
        let mut line = " ".repeat(22);
        for n in 1..=names.len() {
            let digit = if n < place { " ".to_owned() } else { (n / place % 10).to_string() };
            line.extend([" ", &digit]);
        }
        lines.push(line);
    }
    for (n, (name, first)) in names.iter().zip(&methods).enumerate() {
        let mut line = format!("{:2} {name:19}", n + 1);
        for (m, second) in methods.iter().enumerate() {
            let mark = match objection(&[first.clone(), second.clone()]) {
                _ if m == n => ' ',
                None => '.',
                Some((refusal, _)) => letter(refusal),
            };
            line.extend([' ', mark]);
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

#[test]
fn the_table_in_the_documentation_is_what_the_rules_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/composition.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    let table = table();
    assert!(text.contains(&table), "docs/composition.md must hold this table:\n\n{table}\n");
    for refusal in [
        Refusal::TwoDecisions,
        Refusal::WholeStep,
        Refusal::UnimodalLosses,
        Refusal::NoFusion,
        Refusal::TwoWeights,
        Refusal::UnseenFeatures,
        Refusal::NotFirst,
    ] {
        let letter = letter(refusal);
        assert!(table.contains(&format!(" {letter}")), "no pair is refused by {refusal:?}");
        assert!(
            text.contains(&format!("\n| `{letter}` | ")),
            "docs/composition.md does not explain `{letter}`"
        );
    }
}

#[test]
fn three_methods_go_together_where_every_two_do() {
    let methods: Vec<MethodConfig> = catalogue()
        .iter()
        .filter(|entry| !matches!(entry.name, "unimodal" | "ensemble"))
        .map(|entry| toml::from_str(&format!("kind = \"{}\"", entry.name)).expect("a method with defaults"))
        .collect();
    let fine =
        |some: &[&MethodConfig]| objection(&some.iter().copied().cloned().collect::<Vec<_>>()).is_none();
    for a in &methods {
        for b in methods.iter().filter(|b| *b != a) {
            let pair = fine(&[a, b]);
            for c in methods.iter().filter(|c| *c != a && *c != b) {
                let each = pair && fine(&[a, c]) && fine(&[b, c]);
                assert_eq!(fine(&[a, b, c]), each, "{}+{}+{}", a.name(), b.name(), c.name());
            }
        }
    }
}
