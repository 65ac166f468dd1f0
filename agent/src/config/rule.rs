//! In: one value as written. Out: the value as meant, or `None`: the caller says what is allowed.
//! Never: panics or allocates more than the value is long, whatever was written.

use std::fmt;
use std::fmt::Display;
use std::time::Duration;

/// A value as written.
#[derive(Clone, PartialEq, Debug)]
pub enum Raw {
    /// A TOML integer.
    Integer(i64),
    /// A TOML float.
    Decimal(f64),
    /// A TOML boolean.
    Flag(bool),
    /// A TOML string.
    Text(String),
    /// Text of the environment or the command line: whatever the key makes of it.
    Bare(String),
    /// A TOML array.
    List(Vec<Raw>),
    /// Something that no key takes, in words.
    Other(String),
}

/// The most characters of a wrong value that an error repeats.
const SHOWN_MAX: usize = 100;

impl Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Integer(n) => n.to_string(),
            Self::Decimal(n) => n.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) | Self::Bare(text) => quoted(text),
            Self::Other(words) => words.clone(),
            Self::List(items) => {
                // Shortened below; what can never be shown need not be written.
                let shown: Vec<String> = items.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
                format!("[{}]", shown.join(", "))
            }
        };
        match text.char_indices().nth(SHOWN_MAX) {
            Some((at, _)) => write!(f, "{}…", text.get(..at).unwrap_or_default()),
            None => f.write_str(&text),
        }
    }
}

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What a key allows.
pub trait Rule {
    /// What it makes of a value.
    type Value;

    /// In words that fit after "set it to".
    fn allowed(&self) -> String;

    /// `None` when it is not allowed.
    fn read(&self, raw: &Raw) -> Option<Self::Value>;

    /// As TOML; `None` when there is nothing to show.
    fn show(&self, value: &Self::Value) -> Option<String>;

    /// The value of a key that is not set and has no default; `None` when it must be set.
    fn unset(&self) -> Option<Self::Value> {
        None
    }
}

/// A whole number from `min` to `max`.
pub struct Integer<T> {
    pub min: T,
    pub max: T,
}

impl<T: TryFrom<u64> + PartialOrd + Display + Copy> Rule for Integer<T> {
    type Value = T;

    fn allowed(&self) -> String {
        format!("an integer from {} to {}", self.min, self.max)
    }

    fn read(&self, raw: &Raw) -> Option<T> {
        let number = match raw {
            Raw::Integer(n) => u64::try_from(*n).ok()?,
            Raw::Bare(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        T::try_from(number).ok().filter(|n| (self.min..=self.max).contains(n))
    }

    fn show(&self, value: &T) -> Option<String> {
        Some(value.to_string())
    }
}

/// Seconds that go into `of` without remainder.
pub struct Divisor {
    pub of: u64,
}

impl Rule for Divisor {
    type Value = u64;

    fn allowed(&self) -> String {
        format!("an integer from 1 to {of} that divides {of}", of = self.of)
    }

    fn read(&self, raw: &Raw) -> Option<u64> {
        Integer { min: 1, max: self.of }.read(raw).filter(|n| self.of.is_multiple_of(*n))
    }

    fn show(&self, value: &u64) -> Option<String> {
        Some(value.to_string())
    }
}

/// A number of bytes from `min` to `max`, with or without a binary unit.
pub struct Size<T> {
    pub min: T,
    pub max: T,
}

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

fn size_text(bytes: u64) -> String {
    let (unit, factor) = UNITS.into_iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor)).unwrap_or(("", 1));
    format!("{}{unit}", bytes / factor)
}

fn size_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, factor) = UNITS.into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let number: u64 = number.trim_end().parse().ok()?;
    number.checked_mul(factor)
}

impl<T: TryFrom<u64> + TryInto<u64> + PartialOrd + Copy> Rule for Size<T> {
    type Value = T;

    fn allowed(&self) -> String {
        let text = |bytes: T| bytes.try_into().map(size_text).unwrap_or_default();
        format!("bytes from {} to {}, as an integer or like \"64MiB\" (KiB, MiB, GiB, TiB)", text(self.min), text(self.max))
    }

    fn read(&self, raw: &Raw) -> Option<T> {
        let bytes = match raw {
            Raw::Integer(n) => u64::try_from(*n).ok()?,
            Raw::Text(text) | Raw::Bare(text) => size_of(text)?,
            _ => return None,
        };
        T::try_from(bytes).ok().filter(|n| (self.min..=self.max).contains(n))
    }

    fn show(&self, value: &T) -> Option<String> {
        let text = size_text((*value).try_into().ok()?);
        Some(if text.ends_with('B') { quoted(&text) } else { text })
    }
}

/// A part of a whole, from 0 to 1.
pub struct Ratio;

impl Rule for Ratio {
    type Value = f64;

    fn allowed(&self) -> String {
        "a number from 0 to 1, like 0.001".into()
    }

    fn read(&self, raw: &Raw) -> Option<f64> {
        let number = match raw {
            Raw::Integer(0) => 0.0,
            Raw::Integer(1) => 1.0,
            Raw::Decimal(n) => *n,
            Raw::Bare(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        // What is not a number is in no range.
        Some(number).filter(|n| (0.0..=1.0).contains(n))
    }

    fn show(&self, value: &f64) -> Option<String> {
        Some(format!("{value:?}"))
    }
}

/// A time of whole seconds from `min` to `max`, with or without a unit.
pub struct Time {
    pub min: Duration,
    pub max: Duration,
}

const TIMES: [(&str, u64); 5] = [("min", 60), ("d", 86_400), ("h", 3600), ("s", 1), ("", 1)];

fn time_text(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("d", 86_400), ("h", 3600), ("min", 60)];
    let (unit, factor) = units.into_iter().find(|(_, factor)| seconds != 0 && seconds.is_multiple_of(*factor)).unwrap_or(("s", 1));
    format!("{}{unit}", seconds / factor)
}

fn time_of(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, factor) = TIMES.into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let number: u64 = number.trim_end().parse().ok()?;
    number.checked_mul(factor).map(Duration::from_secs)
}

impl Rule for Time {
    type Value = Duration;

    fn allowed(&self) -> String {
        format!("a time from {} to {}, like \"5min\" (s, min, h, d; without a unit: seconds)", time_text(self.min), time_text(self.max))
    }

    fn read(&self, raw: &Raw) -> Option<Duration> {
        let time = match raw {
            Raw::Integer(n) => Duration::from_secs(u64::try_from(*n).ok()?),
            Raw::Text(text) | Raw::Bare(text) => time_of(text)?,
            _ => return None,
        };
        Some(time).filter(|time| (self.min..=self.max).contains(time))
    }

    fn show(&self, value: &Duration) -> Option<String> {
        Some(quoted(&time_text(*value)))
    }
}

/// Yes or no.
pub struct Flag;

impl Rule for Flag {
    type Value = bool;

    fn allowed(&self) -> String {
        "true or false".into()
    }

    fn read(&self, raw: &Raw) -> Option<bool> {
        match raw {
            Raw::Flag(flag) => Some(*flag),
            Raw::Bare(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn show(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// One of a few words.
pub struct Choice<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Rule for Choice<T> {
    type Value = T;

    fn allowed(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| quoted(word)).collect();
        format!("one of {}", words.join(", "))
    }

    fn read(&self, raw: &Raw) -> Option<T> {
        let text = text_of(raw)?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn show(&self, value: &T) -> Option<String> {
        self.0.iter().find(|(_, v)| v == value).map(|(word, _)| quoted(word))
    }
}

/// Text that `parse` understands.
pub struct Text<T> {
    pub allowed: &'static str,
    pub parse: fn(&str) -> Option<T>,
}

impl<T: Display> Rule for Text<T> {
    type Value = T;

    fn allowed(&self) -> String {
        self.allowed.into()
    }

    fn read(&self, raw: &Raw) -> Option<T> {
        (self.parse)(text_of(raw)?)
    }

    fn show(&self, value: &T) -> Option<String> {
        Some(quoted(&value.to_string()))
    }
}

/// The most characters of a text: the longest of all, a filter, rarely has a hundred.
const TEXT_MAX: usize = 4096;

/// No key takes control characters: no name of a file, a bucket or an interface that a person chose has any.
fn text_of(raw: &Raw) -> Option<&str> {
    match raw {
        Raw::Text(text) | Raw::Bare(text) => Some(text.as_str()).filter(|t| t.len() <= TEXT_MAX && !t.chars().any(char::is_control)),
        _ => None,
    }
}

/// Any number of what another rule allows.
pub struct List<R> {
    /// What each must be.
    pub item: R,
    /// What stands between them in an environment variable; not a character of the items.
    pub separator: char,
}

/// The most items of a list.
const ITEMS_MAX: usize = 1000;

impl<R: Rule> Rule for List<R> {
    type Value = Vec<R::Value>;

    fn allowed(&self) -> String {
        format!("a list of {}", self.item.allowed())
    }

    fn read(&self, raw: &Raw) -> Option<Self::Value> {
        match raw {
            Raw::List(items) if items.len() <= ITEMS_MAX => items.iter().map(|item| self.item.read(item)).collect(),
            Raw::Bare(text) => {
                let items = text.split(self.separator).map(str::trim).filter(|item| !item.is_empty()).take(ITEMS_MAX + 1);
                let values: Self::Value = items.map(|item| self.item.read(&Raw::Bare(item.into()))).collect::<Option<_>>()?;
                Some(values).filter(|values| values.len() <= ITEMS_MAX)
            }
            _ => None,
        }
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        let items: Vec<String> = value.iter().filter_map(|item| self.item.show(item)).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

/// What another rule allows, or nothing.
pub struct Maybe<R>(pub R);

impl<R: Rule> Rule for Maybe<R> {
    type Value = Option<R::Value>;

    fn allowed(&self) -> String {
        format!("{}, or leave it out", self.0.allowed())
    }

    fn read(&self, raw: &Raw) -> Option<Self::Value> {
        self.0.read(raw).map(Some)
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        value.as_ref().and_then(|value| self.0.show(value))
    }

    fn unset(&self) -> Option<Self::Value> {
        Some(None)
    }
}
