//! In: the table, and what was written. Out: the effective settings and the annotated example, both TOML that reads back the same.
//! Never: a line that is not made from the table.

use std::fmt::Write;

use super::Written;
use super::rule::Raw;
use super::table::{Fallback, Key, Literal, SECTIONS, keys};

/// Where the comment of a line begins, when the line leaves room.
const COMMENT_COLUMN: usize = 44;

impl Written {
    /// The effective settings as TOML, each with a comment that says where it came from.
    #[must_use]
    pub fn effective(&self) -> String {
        let mut out = String::new();
        for (section, _) in SECTIONS {
            let _ = writeln!(out, "{}[{section}]", if out.is_empty() { "" } else { "\n" });
            for key in keys().iter().filter(|key| key.parts().0 == section) {
                let Some(row) = self.rows.iter().find(|row| row.key == key.name) else { continue };
                let line = match (&row.shown, key.fallback) {
                    (Some(shown), _) => format!("{:COMMENT_COLUMN$} # {}", format!("{} = {shown}", key.parts().1), row.origin),
                    (None, Fallback::Absent { means, .. }) => format!("# {} is not set: {means}", key.parts().1),
                    (None, _) => continue,
                };
                let _ = writeln!(out, "{line}");
            }
        }
        out
    }
}

/// The annotated example file: every key with its default; what must be set is set.
#[must_use]
pub fn example() -> String {
    let mut out = String::from(
        "# Settings of tapfleetd: every key there is. Lines that begin with '# key =' show the default or, where there is none, an\n\
         # example. `tapfleetd check` prints what holds, and everything that is wrong at once; unknown keys are errors.\n\
         #\n\
         # Each key is also an environment variable, which wins over this file: TAPFLEET__SECTION__KEY, dots as `__`, e.g.\n\
         # TAPFLEET__CAPTURE__PORTS__VXLAN=4790. Lists have commas between their items there (unless said); an empty variable is as good as none.\n\
         # Sizes are integers or like \"64MiB\".\n",
    );
    for (section, about) in SECTIONS {
        let _ = writeln!(out, "\n# {about}\n[{section}]");
        for key in keys().iter().filter(|key| key.parts().0 == section) {
            example_of(key, &mut out);
        }
    }
    out
}

fn example_of(key: &Key, out: &mut String) {
    let _ = writeln!(out, "\n# {}\n# Allowed: {}.", key.doc, key.allowed);
    let name = key.parts().1;
    let _ = match key.fallback {
        Fallback::Default(Literal::Nothing) => writeln!(out, "# {name} = []"),
        Fallback::Default(literal) => writeln!(out, "# {name} = {}", Raw::from(literal)),
        Fallback::Required { example } => writeln!(out, "# Must be set.\n{name} = {example}"),
        Fallback::Absent { means, example } => writeln!(out, "# When not set: {means}.\n# {name} = {example}"),
    };
}
