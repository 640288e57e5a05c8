//! What shows behind transparent pixels.

use std::fmt;
use std::str::FromStr;

use crate::DataError;

/// What shows behind transparent pixels where an image is wanted without its alpha channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Background {
    /// The image is composited on this colour (red, green, blue), as by PIL's `alpha_composite`.
    Color([u8; 3]),
    /// Alpha is dropped, as by PIL's `convert("RGB")`: whatever colours the file holds behind transparency show.
    Drop,
}

impl Background {
    /// White.
    pub const WHITE: Self = Self::Color([255; 3]);
    /// Black.
    pub const BLACK: Self = Self::Color([0; 3]);

    /// The colour, where there is one.
    #[must_use]
    pub fn color(self) -> Option<[u8; 3]> {
        match self {
            Self::Color(color) => Some(color),
            Self::Drop => None,
        }
    }
}

impl Default for Background {
    /// White.
    fn default() -> Self {
        Self::WHITE
    }
}

impl FromStr for Background {
    type Err = DataError;

    /// Reads `white`, `black`, `drop` or a colour such as `#3060c0`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let color = |digits: &str| {
            let number = u32::from_str_radix(digits, 16).ok()?;
            let [0, rgb @ ..] = number.to_be_bytes() else { return None };
            Some(Self::Color(rgb))
        };
        let known = match text {
            "white" => Some(Self::WHITE),
            "black" => Some(Self::BLACK),
            "drop" => Some(Self::Drop),
            // `from_str_radix` would take a sign.
            _ => text.strip_prefix('#').filter(|d| d.len() == 6 && !d.starts_with('+')).and_then(color),
        };
        known
            .ok_or_else(|| DataError::config("data.background", "white, black, drop or a colour such as #808080", text))
    }
}

impl fmt::Display for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            &Self::WHITE => f.write_str("white"),
            &Self::BLACK => f.write_str("black"),
            Self::Color([r, g, b]) => write!(f, "#{r:02x}{g:02x}{b:02x}"),
        }
    }
}

/// The channels that an image is wanted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// How many: 1 is gray, 2 gray with alpha, 3 RGB, 4 RGB with alpha; others are bands.
    pub count: usize,
    /// What shows behind transparency where alpha is not among them.
    pub background: Background,
}

impl From<usize> for Channels {
    /// On white.
    fn from(count: usize) -> Self {
        Self { count, background: Background::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_read_and_written() {
        for text in ["white", "black", "drop", "#808080", "#3060c0"] {
            assert_eq!(text.parse::<Background>().unwrap().to_string(), text);
        }
        assert_eq!("#FFFFFF".parse::<Background>().unwrap(), Background::WHITE);
        for text in ["", "#", "red", "#8080", "#+12345", "#80808080", "808080", "#80808g", "#8080é", "White "] {
            let error = text.parse::<Background>().unwrap_err();
            assert!(error.to_string().contains("`data.background`: expected white"), "{error}");
        }
    }
}
