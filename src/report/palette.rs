//! Colours that survive colour blindness, a white page and a dark one.
//!
//! Text and lines are drawn in an [`Ink`]: one colour for a light page and one for a dark page, each with enough
//! contrast against its [`SURFACE`]. Cells of a heat map carry their own background and need only one colour.

use std::fmt;

/// A colour in sRGB, 8 bits a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rgb {
    /// Red.
    pub r: u8,
    /// Green.
    pub g: u8,
    /// Blue.
    pub b: u8,
}

impl Rgb {
    /// The colour written `0xRRGGBB`.
    pub const fn hex(code: u32) -> Rgb {
        Rgb { r: (code >> 16) as u8, g: (code >> 8) as u8, b: code as u8 }
    }

    /// The colour a fraction `t` (clamped to 0..=1) of the way to `other`, channel by channel.
    pub fn mix(self, other: Rgb, t: f64) -> Rgb {
        let t = t.clamp(0.0, 1.0);
        let channel = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * t).round() as u8;
        Rgb { r: channel(self.r, other.r), g: channel(self.g, other.g), b: channel(self.b, other.b) }
    }

    /// The contrast ratio of two colours, 1 (equal) to 21 (black on white), as WCAG 2.2 defines it:
    /// (L₁ + 0.05) / (L₂ + 0.05) with L the relative luminance, the lighter colour on top.
    ///
    /// ```
    /// use limpid::report::palette::Rgb;
    /// assert_eq!(Rgb::hex(0x000000).contrast(Rgb::hex(0xffffff)).round(), 21.0);
    /// ```
    pub fn contrast(self, other: Rgb) -> f64 {
        let luminance = |c: Rgb| {
            let [r, g, b] = c.linear();
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let (a, b) = (luminance(self), luminance(other));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// Linear-light channels: the sRGB transfer function (IEC 61966-2-1) undone.
    fn linear(self) -> [f64; 3] {
        [self.r, self.g, self.b].map(|v| {
            let v = f64::from(v) / 255.0;
            if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        })
    }
}

impl fmt::Display for Rgb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.r, self.g, self.b)
    }
}

/// A colour with two faces: what it is on a light page, and on a dark one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ink {
    /// On a light page.
    pub light: Rgb,
    /// On a dark page.
    pub dark: Rgb,
}

impl Ink {
    const fn new(light: u32, dark: u32) -> Ink {
        Ink { light: Rgb::hex(light), dark: Rgb::hex(dark) }
    }

    /// Both faces moved a fraction `t` towards `other`'s.
    pub fn mix(self, other: Ink, t: f64) -> Ink {
        Ink { light: self.light.mix(other.light, t), dark: self.dark.mix(other.dark, t) }
    }
}

impl From<Rgb> for Ink {
    fn from(colour: Rgb) -> Ink {
        Ink { light: colour, dark: colour }
    }
}

/// The page itself.
pub const SURFACE: Ink = Ink::new(0xffffff, 0x0f1318);
/// Titles and labels.
pub const TEXT: Ink = Ink::new(0x1c2127, 0xe8ebef);
/// Ticks, captions, notes.
pub const MUTED: Ink = Ink::new(0x5b6470, 0x9aa4b0);
/// Grid lines.
pub const GRID: Ink = Ink::new(0xe6e9ed, 0x262d36);
/// Axis lines and frames.
pub const AXIS: Ink = Ink::new(0xa9b1bb, 0x56606c);

/// Hues after Okabe and Ito (2008), moved in lightness until each has a contrast of 3 with its page.
const CATEGORIES: [Ink; 7] = [
    Ink::new(0x0064a8, 0x3f8fd8), // blue
    Ink::new(0xd55e00, 0xf0802e), // vermilion
    Ink::new(0x009a70, 0x2cc79a), // bluish green
    Ink::new(0x7d2468, 0xf0b4f0), // reddish purple
    Ink::new(0xa87600, 0xf2c14e), // amber
    Ink::new(0x4b4fc4, 0x8f94ff), // indigo
    Ink::new(0x5f6670, 0xc3c9d1), // grey
];

/// The number of different hues [`category`] has before it starts again.
pub const CATEGORY_COUNT: usize = CATEGORIES.len();

/// The colour of the `index`-th of several things without an order. Starts again after [`CATEGORY_COUNT`].
pub fn category(index: usize) -> Ink {
    CATEGORIES[index % CATEGORIES.len()]
}

/// Viridis (van der Walt and Smith, 2015) at eleven equal steps.
const VIRIDIS: [Rgb; 11] = [
    Rgb::hex(0x440154),
    Rgb::hex(0x482475),
    Rgb::hex(0x414487),
    Rgb::hex(0x355f8d),
    Rgb::hex(0x2a788e),
    Rgb::hex(0x21918c),
    Rgb::hex(0x22a884),
    Rgb::hex(0x44bf70),
    Rgb::hex(0x7ad151),
    Rgb::hex(0xbddf26),
    Rgb::hex(0xfde725),
];

/// The colour of a fraction `t` (clamped to 0..=1) of a range: viridis, from dark purple to yellow. Its
/// lightness only grows, so it also reads in grey and under every colour blindness.
pub fn sequential(t: f64) -> Rgb {
    let place = t.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let below = (place as usize).min(VIRIDIS.len() - 2);
    VIRIDIS[below].mix(VIRIDIS[below + 1], place - below as f64)
}

/// [`sequential`] for lines and text: the part of the map that stands out from the page, ending at the most
/// striking colour, so that the last of an ordered set is what one sees first.
pub fn sequential_ink(t: f64) -> Ink {
    let t = t.clamp(0.0, 1.0);
    Ink { light: sequential(0.58 - 0.58 * t), dark: sequential(0.33 + 0.67 * t) }
}

/// The tint of a probability between two classes: the first category's hue at 0, the page at ½, the second
/// category's hue at 1, pale enough to draw data points on.
pub fn diverging(p: f64) -> Ink {
    let p = p.clamp(0.0, 1.0);
    SURFACE.mix(category(usize::from(p > 0.5)), 0.06 + 0.74 * (p - 0.5).abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oklab (Ottosson, 2020): Euclidean distance is roughly perceived difference.
    fn oklab([r, g, b]: [f64; 3]) -> [f64; 3] {
        let l = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b).cbrt();
        let m = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b).cbrt();
        let s = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b).cbrt();
        [
            0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
            1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
            0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
        ]
    }

    /// What a dichromat sees of linear light (Machado, Oliveira and Fernandes, 2009, severity 1).
    fn seen(rows: &[[f64; 3]; 3], light: [f64; 3]) -> [f64; 3] {
        rows.map(|row| row.iter().zip(light).map(|(a, b)| a * b).sum::<f64>().clamp(0.0, 1.0))
    }

    const EYES: [(&str, [[f64; 3]; 3]); 4] = [
        ("trichromat", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        (
            "protanope",
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
        ),
        (
            "deuteranope",
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ],
        ),
        (
            "tritanope",
            [
                [1.255528, -0.076749, -0.178779],
                [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900],
            ],
        ),
    ];

    fn distance(eye: &[[f64; 3]; 3], a: Rgb, b: Rgb) -> f64 {
        let (a, b) = (oklab(seen(eye, a.linear())), oklab(seen(eye, b.linear())));
        a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_first_four_categories_differ_for_every_eye() {
        for (name, eye) in &EYES {
            for a in 0..4 {
                for b in 0..a {
                    for (face, d) in [
                        ("light", distance(eye, category(a).light, category(b).light)),
                        ("dark", distance(eye, category(a).dark, category(b).dark)),
                    ] {
                        assert!(d > 0.09, "{a} and {b} on {face} are {d:.3} apart for a {name}");
                    }
                }
            }
        }
    }

    #[test]
    fn lines_and_text_stand_out_from_both_pages() {
        let check = |what: &str, ink: Ink, least: f64| {
            let (light, dark) = (ink.light.contrast(SURFACE.light), ink.dark.contrast(SURFACE.dark));
            assert!(light >= least && dark >= least, "{what}: {light:.2} on light, {dark:.2} on dark");
        };
        check("text", TEXT, 7.0);
        check("muted", MUTED, 4.5);
        (0..CATEGORY_COUNT).for_each(|i| check(&format!("category {i}"), category(i), 3.0));
        (0..=20).for_each(|i| check(&format!("sequential {i}/20"), sequential_ink(f64::from(i) / 20.0), 3.0));
    }

    #[test]
    fn the_sequential_map_gets_lighter_all_the_way_in_even_steps() {
        let lightness: Vec<f64> =
            (0..=50).map(|i| oklab(sequential(f64::from(i) / 50.0).linear())[0]).collect();
        assert!(lightness.windows(2).all(|w| w[1] > w[0]));
        let identity = &EYES[0].1;
        let steps: Vec<f64> = (0..10)
            .map(|i| distance(identity, sequential(f64::from(i) / 10.0), sequential(f64::from(i + 1) / 10.0)))
            .collect();
        let (least, most) =
            (steps.iter().copied().fold(f64::MAX, f64::min), steps.iter().copied().fold(0.0, f64::max));
        assert!(most / least < 2.2, "{steps:?}");
    }

    #[test]
    fn mixing_is_clamped_and_exact_at_the_ends() {
        let (a, b) = (Rgb::hex(0x102030), Rgb::hex(0xffeedd));
        assert_eq!((a.mix(b, 0.0), a.mix(b, 1.0), a.mix(b, 7.0)), (a, b, b));
        assert_eq!(sequential(-1.0).to_string(), "#440154");
        assert_eq!(sequential(2.0).to_string(), "#fde725");
    }
}
