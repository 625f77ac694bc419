use crate::support::{matrix, says};
use mm_core::Modality;
use mm_data::{SourceConfig, State, Synthetic, SyntheticConfig};

fn small() -> SyntheticConfig {
    SyntheticConfig { n_train: 600, n_val: 100, n_test: 300, ..SyntheticConfig::default() }
}

fn bits(set: &Synthetic, m: usize) -> Vec<u32> {
    matrix(&set.dataset, m).values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let (a, b) = (small().generate().unwrap(), small().generate().unwrap());
    let other = SyntheticConfig { seed: 1, ..small() }.generate().unwrap();
    for m in 0..2 {
        assert_eq!(bits(&a, m), bits(&b, m));
        assert_ne!(bits(&a, m), bits(&other, m));
    }
    assert_eq!((&a.dataset.labels, &a.dataset.hash), (&b.dataset.labels, &b.dataset.hash));
    assert_ne!(a.dataset.labels, other.dataset.labels);
    assert_ne!(a.dataset.hash, other.dataset.hash);
}

#[test]
fn a_part_or_a_modality_does_not_disturb_the_others() {
    let a = small().generate().unwrap();
    let mut config = SyntheticConfig { n_train: 610, ..small() };
    config.sources[1].noise = 2.0;
    let b = config.generate().unwrap();
    let x = |set: &Synthetic, row: usize| matrix(&set.dataset, 0).row(row).to_vec();
    for (row, other) in a.splits.test.iter().zip(&b.splits.test) {
        assert_eq!(x(&a, *row), x(&b, *other));
    }
}

#[test]
fn shares_are_realised() {
    let mut config = SyntheticConfig { n_train: 6000, ..small() };
    config.sources[0] = SourceConfig {
        name: "fast".to_owned(),
        dim: 4,
        absent: 0.2,
        conflict: 0.1,
        weak: 0.3,
        missing: 0.25,
        ..SourceConfig::default()
    };
    config.sources[1].dim = 4;
    let set = config.generate().unwrap();
    let n = config.rows() as f64;
    let near = |name: &str, count: usize, share: f64| {
        let sigma = (n * share * (1.0 - share)).sqrt();
        assert!((count as f64 - n * share).abs() < 3.0 * sigma, "{name}: {count} of {n} for {share}");
    };
    let states = &set.truth[Modality::new(0)].states;
    let count = |state| states.iter().filter(|&&s| s == state).count();
    near("informative", count(State::Informative), 0.4);
    near("absent", count(State::Absent), 0.2);
    near("conflict", count(State::Conflict), 0.1);
    near("weak", count(State::Weak), 0.3);
    near("present", set.dataset.inputs[Modality::new(0)].present_count(), 0.75);
    assert_eq!(matrix(&set.dataset, 1).present, None);
    let column: Vec<i64> = states.iter().map(|&s| s as i64).collect();
    assert_eq!(set.dataset.columns["state_fast"], column);
    let counts = set.dataset.class_counts(&set.splits.train);
    assert_eq!(counts, [1000; 6], "classes are balanced");
}

#[test]
fn conflicting_rows_look_like_the_other_class() {
    let mut config = small();
    config.sources[0].conflict = 0.3;
    let set = config.generate().unwrap();
    let truth = &set.truth[Modality::new(0)];
    let nearest = |row: usize| {
        let distance = |c: &usize| -> f32 {
            truth.means.row(*c).iter().zip(truth.latents.row(row)).map(|(a, b)| (a - b).powi(2)).sum()
        };
        (0..config.classes).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap() as u32
    };
    let (mut conflicts, mut other, mut own, mut right, mut informative) = (0, 0, 0, 0, 0);
    for (row, &label) in set.dataset.labels.iter().enumerate() {
        match truth.states[row] {
            State::Conflict => {
                assert_ne!(truth.shown[row], Some(label));
                conflicts += 1;
                other += u32::from(Some(nearest(row)) == truth.shown[row]);
                own += u32::from(nearest(row) == label);
            }
            State::Informative => {
                informative += 1;
                right += u32::from(nearest(row) == label);
            }
            State::Absent => assert_eq!(truth.shown[row], None),
            State::Weak => {}
        }
    }
    let rate = |a: u32, b: u32| f64::from(a) / f64::from(b);
    assert!(rate(other, conflicts) > 0.8, "{}", rate(other, conflicts));
    assert!(rate(own, conflicts) < 0.1, "{}", rate(own, conflicts));
    assert!(rate(right, informative) > 0.8, "{}", rate(right, informative));
}

#[test]
fn a_row_never_loses_every_modality() {
    let mut config = small();
    config.sources[0].missing = 0.9;
    config.sources[1].missing = 0.9;
    let set = config.generate().unwrap();
    let kept = |row| set.dataset.inputs.iter().any(|(_, x)| x.is_present(row));
    assert!((0..config.rows()).all(kept));
}

#[test]
fn settings_are_checked() {
    let fault = |change: fn(&mut SyntheticConfig)| {
        let mut config = small();
        change(&mut config);
        config.generate().unwrap_err()
    };
    says(&fault(|c| c.classes = 1), &["data.classes = 1", "[2, 10000]"]);
    says(&fault(|c| c.n_test = 0), &["data.n_test = 0"]);
    says(&fault(|c| c.sources.clear()), &["data.sources", "at least one"]);
    says(&fault(|c| c.sources[1].absent = 1.2), &["data.sources[1].absent = 1.2", "[0, 1]"]);
    says(&fault(|c| c.sources[0].noise = f64::NAN), &["data.sources[0].noise = NaN"]);
    says(&fault(|c| c.sources[0].weak = 0.9), &["data.sources[0].absent", "must not exceed 1"]);
    says(&fault(|c| c.sources[0].missing = 1.0), &["data.sources[0].missing = 1", "[0, 1)"]);
    says(&fault(|c| c.sources[0].dim = 0), &["data.sources[0].dim = 0"]);
    says(&fault(|c| c.n_train = usize::MAX), &["data.n_train"]);
    says(
        &fault(|c| c.modalities = Some(vec!["slwo".to_owned()])),
        &["data.modalities", "did you mean `slow`?"],
    );
}
