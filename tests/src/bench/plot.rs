//! Bars for figures. In: a contest. Out: an SVG of its first column. Never: a script, a font or a picture from elsewhere.
//! Spec: W3C SVG 1.1, sections 9.2 (rect) and 10.4 (text).

use std::fmt::Write as _;

use super::report::{Contest, number};

const WIDTH: f64 = 860.0;
const LABEL: f64 = 300.0;
const BAR: f64 = 18.0;
const STEP: f64 = 23.0;
const MARGIN: f64 = 14.0;

/// Colours that are told apart also by who does not see red and green (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#999999"];

/// Draws the first column: a bar for each figure, group by group, each group to its own scale.
#[must_use]
pub fn bars(contest: &Contest) -> String {
    let mut who: Vec<&str> = Vec::new();
    let mut body = String::new();
    let (mut y, mut group) = (52.0, "");
    let name = contest.columns.first().map_or("", |column| column.name);
    let digits = contest.columns.first().map_or(0, |column| column.digits);
    for figure in &contest.figures {
        if figure.group != group {
            group = &figure.group;
            y += STEP;
            let _ = writeln!(body, r#"<text x="{MARGIN}" y="{y}" font-weight="bold">{}</text>"#, escaped(group));
            y += 8.0;
        }
        let most = contest.figures.iter().filter(|other| other.group == figure.group).map(|other| other.main()).fold(0.0, f64::max);
        let place = who.iter().position(|known| *known == figure.who).unwrap_or_else(|| {
            who.push(&figure.who);
            who.len() - 1
        });
        let colour = COLOURS.get(place % COLOURS.len()).unwrap_or(&"#999999");
        let length = if most > 0.0 && figure.main() > 0.0 { figure.main() / most * (WIDTH - LABEL - 110.0) } else { 0.0 };
        let text = y + BAR - 4.0;
        let _ = writeln!(body, r#"<text x="{}" y="{text}" text-anchor="end">{}</text>"#, LABEL - 8.0, escaped(&figure.who));
        let _ = writeln!(body, r#"<rect x="{LABEL}" y="{y}" width="{length:.1}" height="{BAR}" fill="{colour}"/>"#);
        let _ = writeln!(body, r#"<text x="{:.1}" y="{text}">{}</text>"#, LABEL + length + 6.0, number(figure.main(), digits));
        y += STEP;
    }
    let height = y + MARGIN;
    format!(
        concat!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="13">"#,
            "\n",
            r##"<rect width="{w}" height="{h}" fill="#ffffff"/>"##,
            "\n",
            r#"<text x="{m}" y="24" font-size="17">{title}</text><text x="{m}" y="44">{name}</text>"#,
            "\n{body}</svg>\n"
        ),
        w = WIDTH,
        h = height,
        m = MARGIN,
        title = escaped(&contest.title),
        name = escaped(name),
        body = body
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
