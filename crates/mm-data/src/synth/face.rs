//! Faces that are drawn: brows, eyes and mouth carry the emotion; skin, hair and proportions say who it is.
//!
//! ```text
//! look  = neutral + strength (table[emotion] - neutral) + habit of the actor + variation * noise
//! ```
//!
//! | part | what an emotion does |
//! |---|---|
//! | brows | raised (fear, joy) or lowered (anger); inner ends up (sadness, fear) or down (anger) |
//! | eyes | wide (fear) or narrow (disgust, joy) |
//! | mouth | corners up or down, open or closed, wide or narrow; teeth where it is open and wide |
//! | nose | wrinkles (disgust) |

use super::raster::{Canvas, Colour, Pose, mix};
use crate::DataError;
use crate::image::Frame;
use mm_core::StepRng;
use mm_kernels::rng::Draws;

/// How a face looks: brows raised, their inner ends raised, eyes open, corners of the mouth up, mouth open, mouth wide,
/// wrinkles of the nose.
pub(super) type Look = [f64; 7];

/// In the order of the classes NEU, HAP, SAD, FEA, DIS, ANG.
pub(super) const LOOKS: [Look; 6] = [
    [0.0, 0.0, 1.0, 0.0, 0.15, 1.0, 0.0],
    [0.3, 0.0, 0.75, 1.0, 0.5, 1.3, 0.0],
    [0.1, 0.9, 0.7, -0.8, 0.05, 0.9, 0.0],
    [0.9, 0.6, 1.45, -0.2, 0.65, 0.95, 0.0],
    [-0.3, -0.3, 0.55, -0.5, 0.25, 0.85, 1.0],
    [-0.6, -1.0, 1.1, -0.4, 0.4, 1.15, 0.3],
];
/// The noise of each part.
const SPREAD: Look = [0.22, 0.25, 0.14, 0.3, 0.12, 0.09, 0.2];

/// Who it is.
#[derive(Debug, Clone)]
pub(super) struct Person {
    skin: Colour,
    hair: Colour,
    shirt: Colour,
    wall: [Colour; 2],
    face: [f64; 2],
    eyes: f64,
    brow: f64,
    long: bool,
    habit: Look,
}

impl Person {
    /// An actor; `female` makes long hair likelier.
    pub(super) fn draw(key: StepRng, female: bool) -> Self {
        let mut d = key.stream("face").draws();
        let mut between = |low: f64, high: f64| low + (high - low) * d.uniform();
        let tone = between(0.0, 1.0);
        let skin = mix([0.95, 0.80, 0.69], [0.42, 0.27, 0.18], tone);
        let hairs: [Colour; 4] =
            [[0.08, 0.06, 0.05], [0.28, 0.17, 0.09], [0.72, 0.56, 0.30], [0.55, 0.54, 0.53]];
        let hair = hairs[(between(0.0, 4.0) as usize).min(3)];
        let shirt = [between(0.1, 0.8), between(0.1, 0.8), between(0.1, 0.8)];
        let grey = between(0.35, 0.75);
        let wall = [[grey, grey, grey * 1.05], [grey * 0.8, grey * 0.8, grey * 0.85]];
        let face = [between(0.20, 0.25), between(0.28, 0.33)];
        let (eyes, brow) = (between(0.085, 0.105), between(0.014, 0.026));
        let long = between(0.0, 1.0) < if female { 0.85 } else { 0.1 };
        let habit = std::array::from_fn(|i| 0.35 * SPREAD[i] * d.normal());
        Self { skin, hair, shirt, wall, face, eyes, brow, long, habit }
    }

    /// How the face looks in a clip with this emotion.
    pub(super) fn look(&self, emotion: usize, strength: f64, variation: f64, d: &mut Draws) -> Look {
        let target = LOOKS.get(emotion).unwrap_or(&LOOKS[0]);
        std::array::from_fn(|i| {
            let neutral = LOOKS[0][i];
            neutral + strength * (target[i] - neutral) + self.habit[i] + variation * SPREAD[i] * d.normal()
        })
    }

    /// One frame; `open` is how far speech opens the mouth, 0 to 1.
    pub(super) fn paint(
        &self,
        [height, width]: [usize; 2],
        look: &Look,
        open: f64,
        pose: Pose,
        grain: &mut Draws,
    ) -> Result<Frame, DataError> {
        let aspect = width as f64 / height as f64;
        let pose = Pose { middle: [pose.middle[0] + aspect / 2.0, pose.middle[1] + 0.5], ..pose };
        let mut c = Canvas::new(height, width, self.wall[0], self.wall[1], pose);
        let [wide, tall] = self.face;
        let dark = mix(self.skin, [0.0; 3], 0.25);
        self.head(&mut c, dark);
        let [raise, tilt, eye, smile, gape, mouth, wrinkle] = *look;
        for side in [-1.0, 1.0] {
            let x = side * self.eyes;
            let half = 0.042;
            let lid = (0.02 * eye).clamp(0.004, 0.034);
            c.lens([x - half, x + half], -0.045, lid, lid * 0.8, [0.95, 0.95, 0.94]);
            let iris = lid.min(0.017);
            c.ellipse([x, -0.046], [0.015, iris], [0.25, 0.18, 0.12]);
            c.ellipse([x, -0.046], [0.007, iris * 0.5], [0.03; 3]);
            c.curve(
                [x - half, -0.045],
                [x, -0.045 - 2.0 * lid],
                [x + half, -0.045],
                0.006,
                mix(dark, [0.0; 3], 0.5),
            );
            // From the inner end of the brow to the outer one.
            let level = -0.105 - 0.03 * raise;
            let inner = [x - side * 0.045, level - 0.028 * tilt];
            let outer = [x + side * 0.05, level + 0.016 * tilt + 0.008];
            let bow = [x, level - 0.022 - 0.008 * raise];
            c.curve(inner, bow, outer, self.brow, mix(self.hair, [0.0; 3], 0.2));
        }
        c.curve([0.0, -0.02], [0.022, 0.06], [-0.006, 0.065], 0.008, dark);
        let crease = mix(self.skin, dark, wrinkle.clamp(0.0, 1.0));
        for step in 0..3 {
            let y = -0.02 + 0.016 * f64::from(step);
            c.curve([-0.024, y], [0.0, y - 0.012], [0.024, y], 0.005, crease);
        }
        let half = (0.068 * mouth).clamp(0.03, 0.11);
        let gap = 0.055 * (gape.max(0.0) * 0.75 + open * 0.35);
        // The corners lie above the middle of a smile, and below that of a sad mouth.
        let corner = 0.145 - 0.022 * smile;
        let bend = 0.044 * smile;
        let lips = mix(self.skin, [0.65, 0.15, 0.18], 0.55);
        c.lens([-half, half], corner, gap * 0.5 - bend + 0.007, gap * 0.5 + bend + 0.009, lips);
        c.lens([-half * 0.9, half * 0.9], corner, gap * 0.5 - bend, gap * 0.5 + bend, [0.22, 0.05, 0.06]);
        if gap > 0.016 && mouth > 1.0 {
            c.lens([-half * 0.8, half * 0.8], corner, gap * 0.5 - bend, bend - gap * 0.1, [0.93, 0.92, 0.88]);
        }
        c.curve([-half, corner], [0.0, corner + 2.0 * bend], [half, corner], 0.006, mix(lips, [0.0; 3], 0.4));
        let cheek = mix(self.skin, [0.85, 0.3, 0.3], 0.2);
        if smile > 0.5 {
            for side in [-1.0, 1.0] {
                c.ellipse([side * wide * 0.62, 0.08], [0.035, 0.025], cheek);
            }
        }
        debug_assert!(tall > wide, "faces are taller than wide");
        c.finish(|| 0.012 * grain.normal())
    }

    /// Everything that does not change with the emotion.
    fn head(&self, c: &mut Canvas, dark: Colour) {
        let [wide, tall] = self.face;
        if self.long {
            c.ellipse([0.0, 0.06], [wide * 1.3, tall * 1.25], self.hair);
        }
        c.ellipse([0.0, 0.62], [0.42, 0.24], self.shirt);
        c.ellipse([0.0, 0.34], [wide * 0.42, 0.16], dark);
        c.ellipse([0.0, -0.08], [wide * 1.1, tall], self.hair);
        for side in [-1.0, 1.0] {
            c.ellipse([side * wide, -0.01], [0.03, 0.05], dark);
        }
        c.ellipse([0.0, 0.0], [wide, tall], self.skin);
        c.lens([-wide, wide], -tall * 0.62, tall * 0.42, 0.02 - tall * 0.1, self.hair);
    }
}
