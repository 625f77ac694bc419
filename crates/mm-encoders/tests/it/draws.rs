//! Weights and inputs that are in no file: `uniform` of `tests/golden/generate/resnet18.py` gives the same bits.

/// Numbers in [-1, 1): SplitMix64 from the FNV-1a hash of the name; 53 bits of each word.
pub(super) fn uniform(name: &str, count: usize) -> Vec<f64> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let word = |i: u64| {
        let z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count as u64).map(|i| 2.0 * ((word(i) >> 11) as f64 / (1u64 << 53) as f64) - 1.0).collect()
}

#[test]
fn both_sides_draw_the_same_numbers() {
    // From the function of the same name in resnet18.py.
    assert_eq!(
        uniform("conv1.weight", 3),
        [0.090_149_957_834_289_47, 0.490_323_502_656_671_9, -0.954_156_525_932_855_7]
    );
}
