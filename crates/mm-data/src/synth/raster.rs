//! Shapes painted with smooth edges: ellipses, lenses and strokes.
//!
//! ```text
//! shape coordinates = turn(pixel / height - middle) / zoom        middle and turn: the pose of the head
//! coverage          = clamp(1/2 - signed distance / width of a pixel)
//! pixel             = pixel + coverage (colour - pixel)
//! ```

use crate::DataError;
use crate::image::Frame;

/// Red, green and blue from 0 to 1.
pub(super) type Colour = [f64; 3];

/// Where the head is: shapes that are painted move, turn and grow with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pose {
    /// The origin of the shapes, in heights of the picture.
    pub(super) middle: [f64; 2],
    /// Radians, clockwise.
    pub(super) turn: f64,
    /// Larger than 1: nearer.
    pub(super) zoom: f64,
}

/// A picture that is being painted.
#[derive(Debug)]
pub(super) struct Canvas {
    height: usize,
    width: usize,
    pixels: Vec<Colour>,
    pub(super) pose: Pose,
}

impl Canvas {
    /// From one colour at the top to another at the bottom.
    pub(super) fn new(height: usize, width: usize, top: Colour, bottom: Colour, pose: Pose) -> Self {
        let row = |y: usize| mix(top, bottom, y as f64 / height.max(1) as f64);
        let pixels = (0..height).flat_map(|y| std::iter::repeat_n(row(y), width)).collect();
        Self { height, width, pixels, pose }
    }

    /// A filled ellipse.
    pub(super) fn ellipse(&mut self, [x, y]: [f64; 2], [rx, ry]: [f64; 2], colour: Colour) {
        let (rx, ry) = (rx.max(1e-4), ry.max(1e-4));
        self.paint([x - rx, y - ry, x + rx, y + ry], colour, |px, py, width| {
            let (u, v) = ((px - x) / rx, (py - y) / ry);
            let value = u.hypot(v) - 1.0;
            // The distance to first order: value over the length of its gradient.
            let slope = (u / rx).hypot(v / ry) / u.hypot(v).max(1e-9);
            edge(value / slope.max(1e-9), width)
        });
    }

    /// What lies between two arcs from `[left, y]` to `[right, y]`: the upper rises by `up`, the lower sinks by `down`.
    pub(super) fn lens(&mut self, [left, right]: [f64; 2], y: f64, up: f64, down: f64, colour: Colour) {
        let (half, middle) = (((right - left) / 2.0).max(1e-4), f64::midpoint(left, right));
        let (high, low) = (up.max(-down).max(0.0), down.max(-up).max(0.0));
        self.paint([left, y - high, right, y + low], colour, |px, py, width| {
            let u = (px - middle) / half;
            let arc = 1.0 - u * u;
            if arc <= 0.0 {
                return 0.0;
            }
            edge(y - up * arc - py, width) * edge(py - y - down * arc, width)
        });
    }

    /// A stroke along the parabola from `from` to `to` whose middle is pulled towards `by`.
    pub(super) fn curve(&mut self, from: [f64; 2], by: [f64; 2], to: [f64; 2], thick: f64, colour: Colour) {
        const PIECES: usize = 12;
        let point = |i: usize| {
            let t = i as f64 / PIECES as f64;
            let part = |k: usize| (1.0 - t).powi(2) * from[k] + 2.0 * t * (1.0 - t) * by[k] + t * t * to[k];
            [part(0), part(1)]
        };
        let points: [[f64; 2]; PIECES + 1] = std::array::from_fn(point);
        let side = |k: usize, pick: fn(f64, f64) -> f64| points.iter().map(|p| p[k]).fold(from[k], pick);
        let bounds = [
            side(0, f64::min) - thick,
            side(1, f64::min) - thick,
            side(0, f64::max) + thick,
            side(1, f64::max) + thick,
        ];
        self.paint(bounds, colour, |px, py, width| {
            let distance = points.windows(2).map(|pair| to_segment([px, py], pair[0], pair[1]));
            edge(distance.fold(f64::INFINITY, f64::min) - thick / 2.0, width)
        });
    }

    /// Mixes a colour into every pixel within the bounds (left, top, right, bottom) by the coverage there, which is a
    /// function of the place and the width of a pixel, both in the coordinates of shapes.
    fn paint(&mut self, bounds: [f64; 4], colour: Colour, coverage: impl Fn(f64, f64, f64) -> f64) {
        let Pose { middle, turn, zoom } = self.pose;
        let (sin, cos) = turn.sin_cos();
        let scale = self.height as f64;
        let [left, top, right, bottom] = bounds;
        let corners = [[left, top], [right, top], [left, bottom], [right, bottom]].map(|[x, y]| {
            [
                ((x * cos - y * sin) * zoom + middle[0]) * scale,
                ((x * sin + y * cos) * zoom + middle[1]) * scale,
            ]
        });
        let range = |k: usize, end: usize| {
            let low = corners.iter().map(|c| c[k]).fold(f64::INFINITY, f64::min) - 1.5;
            let high = corners.iter().map(|c| c[k]).fold(f64::NEG_INFINITY, f64::max) + 1.5;
            (low.max(0.0) as usize)..(high.max(0.0).min(end as f64) as usize)
        };
        let width = 1.0 / (scale * zoom);
        for row in range(1, self.height) {
            for column in range(0, self.width) {
                let x = (column as f64 + 0.5) / scale - middle[0];
                let y = (row as f64 + 0.5) / scale - middle[1];
                let share = coverage((x * cos + y * sin) / zoom, (y * cos - x * sin) / zoom, width);
                if share > 0.0
                    && let Some(pixel) = self.pixels.get_mut(row * self.width + column)
                {
                    *pixel = mix(*pixel, colour, share);
                }
            }
        }
    }

    /// The picture in 8 bits, with grain: a function that gives a number near 0 for each value.
    pub(super) fn finish(self, mut grain: impl FnMut() -> f64) -> Result<Frame, DataError> {
        let byte = |v: f64| (v * 255.0).round().clamp(0.0, 255.0) as u8;
        let mut bytes = Vec::with_capacity(self.pixels.len() * 3);
        for pixel in self.pixels {
            let noise = grain();
            bytes.extend(pixel.map(|v| byte(v + noise)));
        }
        Frame::new(self.height, self.width, 3, bytes)
    }
}

/// A colour between two.
pub(super) fn mix(a: Colour, b: Colour, share: f64) -> Colour {
    std::array::from_fn(|i| a[i] + share * (b[i] - a[i]))
}

/// How much of a pixel lies on the inner side of an edge at this signed distance.
fn edge(distance: f64, width: f64) -> f64 {
    (0.5 - distance / width).clamp(0.0, 1.0)
}

fn to_segment(p: [f64; 2], a: [f64; 2], b: [f64; 2]) -> f64 {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let along = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / (dx * dx + dy * dy).max(1e-18);
    let along = along.clamp(0.0, 1.0);
    (p[0] - a[0] - along * dx).hypot(p[1] - a[1] - along * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSE: Pose = Pose { middle: [0.5, 0.5], turn: 0.0, zoom: 1.0 };

    /// How many pixels of a black canvas white paint covers, in squares of the height.
    fn area(pose: Pose, paint: impl Fn(&mut Canvas)) -> f64 {
        let mut canvas = Canvas::new(200, 200, [0.0; 3], [0.0; 3], pose);
        paint(&mut canvas);
        canvas.pixels.iter().map(|p| p[0]).sum::<f64>() / (200.0 * 200.0)
    }

    #[test]
    fn areas_are_those_of_geometry() {
        let white = [1.0; 3];
        let ellipse = area(POSE, |c| c.ellipse([0.05, -0.02], [0.3, 0.15], white));
        assert!((ellipse - std::f64::consts::PI * 0.3 * 0.15).abs() < 2e-4, "{ellipse}");
        // A parabola over a chord of length l with height h has the area 2 l h / 3.
        let lens = area(POSE, |c| c.lens([-0.3, 0.1], 0.0, 0.12, 0.06, white));
        assert!((lens - 2.0 / 3.0 * 0.4 * 0.18).abs() < 2e-4, "{lens}");
        let stroke = area(POSE, |c| c.curve([-0.3, 0.0], [0.0, 0.0], [0.3, 0.0], 0.04, white));
        let expected = 0.6 * 0.04 + std::f64::consts::PI * 0.02f64.powi(2);
        assert!((stroke - expected).abs() < 2e-4, "{stroke} {expected}");
    }

    #[test]
    fn a_pose_turns_and_zooms() {
        let paint = |c: &mut Canvas| c.ellipse([0.1, 0.0], [0.2, 0.1], [1.0; 3]);
        let plain = area(POSE, paint);
        let posed = area(Pose { middle: [0.45, 0.55], turn: 0.3, zoom: 1.2 }, paint);
        assert!((posed - 1.44 * plain).abs() < 3e-4, "{plain} {posed}");
        // Outside the picture nothing is painted, and nothing panics.
        assert_eq!(area(Pose { middle: [9.0, -9.0], ..POSE }, paint), 0.0);
    }
}
