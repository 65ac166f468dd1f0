//! In: a TOML file, environment variables, arguments. Out: for each key of the table what was written and where.
//! Never: follows a key as a path. The `config` crate's own merging would: the quoted key `"a[999999999]"` makes it allocate a
//! list of that length. So its readers are used, and the merge goes key by key along the table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use ::config::{Environment, FileFormat, Map, Source, Value, ValueKind};

use super::rule::{Raw, Rule, quoted};
use super::table::{self, Fallback, Key};
use super::{DEFAULT_FILE, Origin, VARIABLE_PREFIX, Wrong};

/// The most bytes of a settings file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What holds for one key.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub key: &'static str,
    /// As TOML; `None` when it is not set, or wrong.
    pub shown: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// Collects what was written, then hands it out key by key.
pub struct Reader {
    keys: Vec<Key>,
    found: BTreeMap<String, (Raw, Origin)>,
    rows: Vec<Row>,
    wrong: Vec<Wrong>,
}

impl Reader {
    /// One that has taken nothing yet.
    pub fn new() -> Self {
        Self { keys: table::keys(), found: BTreeMap::new(), rows: Vec::new(), wrong: Vec::new() }
    }

    /// Takes a file; the default one may be missing.
    pub fn file(&mut self, named: Option<&Path>) {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match read_text(path) {
            Ok(text) => text,
            Err(cause) if named.is_none() && cause.kind() == ErrorKind::NotFound => return,
            Err(cause) => return self.wrong.push(Wrong::File { path: path.into(), cause: cause.to_string() }),
        };
        match ::config::File::from_str(&text, FileFormat::Toml).collect() {
            Ok(map) => self.table("", map, &Origin::File(path.into())),
            Err(cause) => {
                let cause = syntax(&text, cause);
                self.wrong.push(Wrong::File { path: path.into(), cause });
            }
        }
    }

    /// Takes the keys of one TOML table, `prefix` before each.
    fn table(&mut self, prefix: &str, map: Map<String, Value>, origin: &Origin) {
        // The map is hashed; errors shall come in the same order each time.
        for (name, value) in map.into_iter().collect::<BTreeMap<_, _>>() {
            let key = format!("{prefix}{name}");
            let inside = format!("{key}.");
            // A dot in a quoted key is part of the name, not a path.
            let is_key = !name.contains('.') && self.keys.iter().any(|known| known.name == key);
            let is_section = !name.contains('.') && self.keys.iter().any(|known| known.name.starts_with(&inside));
            match value.kind {
                kind if is_key => {
                    self.found.insert(key, (raw(kind), origin.clone()));
                }
                ValueKind::Table(map) if is_section => self.table(&inside, map, origin),
                kind if is_section => {
                    let value = raw(kind).to_string();
                    self.wrong.push(Wrong::Value { key, value, origin: origin.clone(), allowed: "a table of keys".into() });
                }
                kind => self.unknown(&key, &raw(kind), origin.clone()),
            }
        }
    }

    /// Takes what begins with [`VARIABLE_PREFIX`]; an empty value is as good as none.
    pub fn variables(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut known = Map::new();
        let mut unknown = BTreeMap::new();
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
            let key = rest.replace("__", ".").to_lowercase();
            if self.keys.iter().all(|known| known.variable() != name) {
                unknown.insert(name, (key, value));
                continue;
            }
            match value.into_string() {
                Ok(value) => drop(known.insert(name, value)),
                Err(value) => {
                    let value = quoted(&value.to_string_lossy());
                    self.wrong.push(Wrong::Value { key, value, origin: Origin::Variable(name), allowed: "valid UTF-8".into() });
                }
            }
        }
        for (name, (key, value)) in unknown {
            self.unknown(&key, &Raw::Bare(value.to_string_lossy().into_owned()), Origin::Variable(name));
        }
        let source = Environment::with_prefix(VARIABLE_PREFIX.trim_end_matches('_')).separator("__").ignore_empty(true);
        // Only a value that is not UTF-8 makes it fail, and none is left.
        for (key, value) in source.source(Some(known)).collect().unwrap_or_default() {
            if let ValueKind::String(text) = value.kind {
                let origin = Origin::Variable(variable_of(&key));
                self.found.insert(key, (Raw::Bare(text), origin));
            }
        }
    }

    /// Takes one argument of the command line.
    pub fn argument(&mut self, key: &'static str, value: String, argument: &'static str) {
        self.found.insert(key.into(), (Raw::Bare(value), Origin::Argument(argument)));
    }

    fn unknown(&mut self, key: &str, raw: &Raw, origin: Origin) {
        let likeness = |known: &Key| strsim::jaro_winkler(known.name, key);
        let nearest = self.keys.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let nearest = nearest.map_or_else(String::new, |known| match origin {
            Origin::Variable(_) => known.variable(),
            _ => known.name.to_owned(),
        });
        // Credentials have no place here; who tries shall not find them in a log.
        let secret = ["secret", "password", "token", "credential", "access_key"].iter().any(|word| key.to_lowercase().contains(word));
        let value = if secret { "…".into() } else { raw.to_string() };
        let key = key.chars().take(100).flat_map(char::escape_default).collect();
        self.wrong.push(Wrong::Unknown { key, value, origin, nearest });
    }

    /// Hands out one key's value; `None` when it is wrong or missing, which is noted.
    pub fn read<R: Rule>(&mut self, key: &Key, rule: &R) -> Option<R::Value> {
        let (raw, origin) = match (self.found.remove(key.name), key.fallback) {
            (Some(found), _) => found,
            (None, Fallback::Default(literal)) => (literal.into(), Origin::Default),
            (None, Fallback::Absent { .. }) => {
                self.rows.push(Row { key: key.name, shown: None, origin: Origin::Default });
                return rule.unset();
            }
            (None, Fallback::Required { .. }) => {
                // In a file that cannot be read it may well stand.
                if !self.wrong.iter().any(|wrong| matches!(wrong, Wrong::File { .. })) {
                    self.wrong.push(Wrong::Missing { key: key.name, variable: key.variable(), allowed: rule.allowed() });
                }
                return None;
            }
        };
        let value = rule.read(&raw);
        if value.is_none() {
            let (key, value) = (key.name.into(), raw.to_string());
            self.wrong.push(Wrong::Value { key, value, origin: origin.clone(), allowed: rule.allowed() });
        }
        let shown = value.as_ref().and_then(|value| rule.show(value));
        self.rows.push(Row { key: key.name, shown, origin });
        value
    }

    /// Notes that a value that was handed out does not fit with others.
    pub fn refuse(&mut self, key: &str, allowed: &str) {
        let Some(row) = self.rows.iter().find(|row| row.key == key) else { return };
        let value = row.shown.clone().unwrap_or_default();
        self.wrong.push(Wrong::Value { key: key.into(), value, origin: row.origin.clone(), allowed: allowed.into() });
    }

    /// What holds for each key, and what is wrong.
    pub fn finish(self) -> (Vec<Row>, Vec<Wrong>) {
        (self.rows, self.wrong)
    }
}

/// The environment variable of a key.
pub fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes, which no settings file is")));
    }
    String::from_utf8(bytes).map_err(|cause| std::io::Error::other(format!("it is not UTF-8 text: {}", cause.utf8_error())))
}

/// The parser's error in one line, with the line of the file.
fn syntax(text: &str, error: ::config::ConfigError) -> String {
    let cause = match error {
        ::config::ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    // An integer beyond 64 bits is reported without its place.
    if cause.contains("to fit in target type") {
        let digits = |line: &str| line.split(|c: char| !c.is_ascii_digit() && c != '_').map(str::len).max().unwrap_or(0);
        let line = text.lines().position(|line| digits(line) >= i64::MAX.to_string().len());
        let place = line.map_or_else(String::new, |n| format!(" at line {}", n + 1));
        return format!("an integer{place} is beyond 64 bits");
    }
    // The parser draws the place with a caret; its first line says where, its last ones what.
    let lines = cause.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
    lines.collect::<Vec<_>>().join(": ")
}

fn raw(kind: ValueKind) -> Raw {
    match kind {
        ValueKind::Boolean(flag) => Raw::Flag(flag),
        ValueKind::I64(n) => Raw::Integer(n),
        ValueKind::String(text) => Raw::Text(text),
        ValueKind::Array(items) => Raw::List(items.into_iter().map(|item| raw(item.kind)).collect()),
        ValueKind::Float(n) => Raw::Decimal(n),
        ValueKind::Table(_) => Raw::Other("a table".into()),
        other => Raw::Other(other.to_string()),
    }
}
