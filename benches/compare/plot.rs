//! The plot: a bar for each contender and workload, as SVG.
//! How do the ratios look?

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::Error;
use crate::report::{FEATURES, ratios};
use crate::results::{Results, summary};
use crate::workload::WORKLOADS;

const WIDTH: f64 = 760.0;
/// The place of the names, and the width of one ratio of 1.
const LEFT: f64 = 210.0;
const UNIT: f64 = 100.0;
const BAR: f64 = 14.0;
/// The space between two groups of bars.
const GAP: f64 = 24.0;
/// Longer bars end here, with their number.
const LONGEST: f64 = 5.0;

/// The drawing so far, and where its next line goes.
struct Drawing {
    svg: String,
    y: f64,
}

pub(crate) fn write(file: &Path, results: &Results, contenders: &[String], base: &str) -> Result<(), Error> {
    let mut drawing = Drawing { svg: String::new(), y: 30.0 };
    for workload in WORKLOADS.iter().filter(|workload| workload.rate.is_none()) {
        drawing.title(workload.title)?;
        for contender in contenders {
            drawing.bar(contender, contender == base, ratios(results, workload, contender, base))?;
        }
        drawing.y += GAP;
    }
    let (first, _) = FEATURES[0];
    drawing.title("features, added one by one")?;
    for (number, (name, title)) in FEATURES.iter().enumerate() {
        let title = if number == 0 { (*title).to_owned() } else { format!("+ {title}") };
        drawing.bar(&title, *name == base, ratios(results, &WORKLOADS[0], name, first))?;
    }
    let Drawing { svg: bars, y } = drawing;
    let (one, y) = (LEFT + UNIT, y + 10.0);
    let svg = format!(
        r##"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="11">
<title>Cost of each contender, as a ratio to outgate</title>
<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>
<path d="M{one} 20V{y}" stroke="#2b6cb0" stroke-dasharray="3 3"/>
{bars}</svg>
"##
    );
    fs::write(file, svg).map_err(Into::into)
}

impl Drawing {
    fn title(&mut self, title: &str) -> std::fmt::Result {
        writeln!(self.svg, r#"<text x="8" y="{}" font-weight="bold">{title}</text>"#, self.y)?;
        self.y += 8.0;
        Ok(())
    }

    /// Draws nothing without ratios.
    fn bar(&mut self, name: &str, is_base: bool, ratios: Vec<f64>) -> std::fmt::Result {
        let Some((median, least, greatest)) = summary(ratios) else { return Ok(()) };
        let at = |ratio: f64| LEFT + ratio.min(LONGEST) * UNIT;
        let (y, width, middle, text) = (self.y, at(median) - LEFT, self.y + BAR / 2.0 - 1.5, self.y + BAR - 4.0);
        let color = if is_base { "#2b6cb0" } else { "#a0aec0" };
        writeln!(self.svg, r#"<text x="{}" y="{text}" text-anchor="end">{name}</text>"#, LEFT - 6.0)?;
        writeln!(self.svg, r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{}" fill="{color}"/>"#, BAR - 3.0)?;
        let (low, high) = (at(least), at(greatest));
        writeln!(self.svg, r##"<path d="M{low:.1} {middle}H{high:.1}" stroke="#1a202c"/>"##)?;
        writeln!(self.svg, r#"<text x="{:.1}" y="{text}">{median:.2}</text>"#, high + 5.0)?;
        self.y += BAR;
        Ok(())
    }
}
