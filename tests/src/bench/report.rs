//! What the contests showed: as a table on the screen, as Markdown with plots, as JSON.
//! In: figures. Out: text. Never: a figure that was not measured in this run.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What is measured in a contest.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Digits behind the point.
    pub digits: usize,
}

impl Column {
    /// A column.
    #[must_use]
    pub const fn new(name: &'static str, digits: usize) -> Self {
        Self { name, digits }
    }
}

/// Medians of one contestant in one group of a contest.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// What is compared among itself: a mix, a quota.
    pub group: String,
    /// Whose they are.
    pub who: String,
    /// One for each column; not a number where nothing was measured.
    pub values: Vec<f64>,
}

impl Figure {
    /// Figures of `who`.
    #[must_use]
    pub fn new(group: impl Into<String>, who: impl Into<String>, values: &[f64]) -> Self {
        Self { group: group.into(), who: who.into(), values: values.into() }
    }

    /// The figure of the first column, which is what the contest is about.
    #[must_use]
    pub fn main(&self) -> f64 {
        self.values.first().copied().unwrap_or(f64::NAN)
    }
}

/// Whether a target was reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// What was asked for.
    pub target: String,
    /// What was seen.
    pub seen: String,
    /// Whether that is enough; nothing where this machine cannot tell.
    pub reached: Option<bool>,
}

impl Verdict {
    /// Whether `seen` is at most `most`.
    #[must_use]
    pub fn at_most(what: impl Into<String>, seen: f64, most: f64, unit: &str) -> Self {
        // A third has no end.
        let said = (100.0 * most).round() / 100.0;
        Self { target: format!("{}: at most {said}{unit}", what.into()), seen: format!("{seen:.2}{unit}"), reached: Some(seen <= most) }
    }

    /// Whether `seen` is at least `least`.
    #[must_use]
    pub fn at_least(what: impl Into<String>, seen: f64, least: f64, unit: &str) -> Self {
        Self { target: format!("{}: at least {least}{unit}", what.into()), seen: format!("{seen:.2}{unit}"), reached: Some(seen >= least) }
    }

    /// Whether `seen` is more than `bound`.
    #[must_use]
    pub fn above(what: impl Into<String>, seen: f64, bound: f64, unit: &str) -> Self {
        Self { target: format!("{}: more than {bound}{unit}", what.into()), seen: format!("{seen:.2}{unit}"), reached: Some(seen > bound) }
    }

    /// What this machine cannot show, and why.
    #[must_use]
    pub fn not_told(what: impl Into<String>, why: &str) -> Self {
        Self { target: what.into(), seen: why.into(), reached: None }
    }

    fn word(&self) -> &'static str {
        match self.reached {
            Some(true) => "reached",
            Some(false) => "missed",
            None => "not told",
        }
    }

    /// Whether the main figure of `ours` in a group is at most so many times that of `theirs`.
    #[must_use]
    pub fn ratio(what: &str, group: &str, figures: &[Figure], (ours, theirs): (&str, &str), most: f64) -> Self {
        let of = |who: &str| figures.iter().find(|figure| figure.group == group && figure.who == who).map_or(f64::NAN, Figure::main);
        Self::at_most(format!("{what}, {group}"), of(ours) / of(theirs), most, "x")
    }
}

/// A contest that was held.
#[derive(Clone, Debug)]
pub struct Contest {
    /// As `--only` knows it; also the name of the plot.
    pub name: &'static str,
    /// For people.
    pub title: String,
    /// How it was done.
    pub notes: Vec<String>,
    /// What was measured; the first one is what the contest is about, and is plotted.
    pub columns: &'static [Column],
    /// The figures, group by group; in each the agent comes first.
    pub figures: Vec<Figure>,
    /// The targets.
    pub verdicts: Vec<Verdict>,
}

impl Contest {
    fn head(&self) -> Vec<String> {
        let names = self.columns.iter().map(|column| column.name.to_owned());
        ["".to_owned(), "".to_owned()].into_iter().chain(names).chain(["ratio".to_owned()]).collect()
    }

    /// Lines of cells; the last one is the main figure as a multiple of that of the group's first line.
    fn rows(&self) -> Vec<Vec<String>> {
        let first = |group: &str| self.figures.iter().find(|figure| figure.group == group).map_or(f64::NAN, Figure::main);
        let row = |figure: &Figure| {
            let cells = figure.values.iter().zip(self.columns).map(|(&value, column)| number(value, column.digits));
            let ratio = number(figure.main() / first(&figure.group), 2);
            [figure.group.clone(), figure.who.clone()].into_iter().chain(cells).chain([ratio]).collect()
        };
        self.figures.iter().map(row).collect()
    }

    /// As a table for the screen, with the verdicts.
    #[must_use]
    pub fn screen(&self) -> String {
        let rows: Vec<Vec<String>> = [self.head()].into_iter().chain(self.rows()).collect();
        let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len() + 3).map(width).collect();
        let mut text = format!("\n== {} ==\n", self.title);
        for row in &rows {
            for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = if place < 2 { write!(text, "{cell:<width$}  ") } else { write!(text, "{cell:>width$}  ") };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        for verdict in &self.verdicts {
            let _ = writeln!(text, "{:<8} {}: {}", verdict.word(), verdict.target, verdict.seen);
        }
        text
    }

    /// As a section of the results.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.notes.join("\n"));
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text += &line(&self.head());
        text += &format!("|{}\n", "---|".repeat(self.columns.len() + 3));
        self.rows().iter().for_each(|row| text += &line(row));
        if !self.verdicts.is_empty() {
            text += "\n| target | seen | |\n|---|---|---|\n";
        }
        for verdict in &self.verdicts {
            let mark = if verdict.reached == Some(false) { "**" } else { "" };
            let _ = writeln!(text, "| {} | {} | {mark}{}{mark} |", verdict.target, verdict.seen, verdict.word());
        }
        let _ = writeln!(text, "\n![{}]({}.svg)\n", self.title, self.name);
        text
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let figure = |figure: &Figure| {
            let values: serde_json::Map<String, Value> =
                figure.values.iter().zip(self.columns).map(|(value, column)| (column.name.to_owned(), json!(value))).collect();
            json!({ "group": figure.group, "who": figure.who, "values": values })
        };
        let verdict = |verdict: &Verdict| json!({ "target": verdict.target, "seen": verdict.seen, "reached": verdict.reached });
        json!({
            "contest": self.name,
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "verdicts": self.verdicts.iter().map(verdict).collect::<Vec<_>>(),
        })
    }
}

/// A figure in a table.
#[must_use]
pub fn number(value: f64, digits: usize) -> String {
    if value.is_nan() { "-".into() } else { format!("{value:.digits$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contest() -> Contest {
        let figures = vec![Figure::new("IMIX", "tapfleetd", &[100.0, 1.5]), Figure::new("IMIX", "tcpdump -w", &[250.0, f64::NAN])];
        let verdict = Verdict::ratio("time", "IMIX", &figures, ("tapfleetd", "tcpdump -w"), 0.5);
        const COLUMNS: &[Column] = &[Column::new("ns", 0), Column::new("lost", 1)];
        Contest { name: "capture", title: "Capture".into(), notes: vec!["how".into()], columns: COLUMNS, figures, verdicts: vec![verdict] }
    }

    #[test]
    fn a_ratio_is_of_the_first_one_in_its_group_and_what_was_not_measured_says_so() {
        let rows = contest().rows();
        assert_eq!(rows, [vec!["IMIX", "tapfleetd", "100", "1.5", "1.00"], vec!["IMIX", "tcpdump -w", "250", "-", "2.50"]]);
    }

    #[test]
    fn a_target_is_reached_at_its_bound_and_missed_beyond_it_or_without_a_figure() {
        assert_eq!(contest().verdicts.first().map(|verdict| (verdict.reached, verdict.seen.as_str())), Some((Some(true), "0.40x")));
        let reached = |verdict: Verdict| verdict.reached == Some(true);
        assert!(reached(Verdict::at_most("", 0.5, 0.5, "")) && !reached(Verdict::at_most("", 0.51, 0.5, "")));
        assert!(reached(Verdict::above("", 0.51, 0.5, "")) && !reached(Verdict::above("", 0.5, 0.5, "")));
        for missing in
            [Verdict::at_most("", f64::NAN, 0.5, ""), Verdict::at_least("", f64::NAN, 0.5, ""), Verdict::above("", f64::NAN, 0.5, "")]
        {
            assert_eq!(missing.reached, Some(false));
        }
    }
}
