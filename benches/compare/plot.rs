//! The plot: a bar for each contender and workload, as SVG.
//! How do the ratios look?

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::Error;
use crate::report::ratios;
use crate::results::{Results, summary};
use crate::workload::WORKLOADS;

const WIDTH: f64 = 760.0;
/// The place of the names, and the width of one ratio of 1.
const LEFT: f64 = 140.0;
const UNIT: f64 = 110.0;
const BAR: f64 = 14.0;
/// Longer bars end here, with their number.
const LONGEST: f64 = 5.0;

pub(crate) fn write(file: &Path, results: &Results, contenders: &[String], base: &str) -> Result<(), Error> {
    let mut bars = String::new();
    let mut y = 30.0;
    for workload in WORKLOADS.iter().filter(|workload| workload.rate.is_none()) {
        writeln!(bars, r#"<text x="8" y="{y}" font-weight="bold">{}</text>"#, workload.title)?;
        y += 8.0;
        for contender in contenders {
            let Some((median, least, greatest)) = summary(ratios(results, workload, contender, base)) else { continue };
            let at = |ratio: f64| LEFT + ratio.min(LONGEST) * UNIT;
            let (width, middle, text) = (at(median) - LEFT, y + BAR / 2.0, y + BAR - 3.0);
            let color = if contender == base { "#2b6cb0" } else { "#a0aec0" };
            writeln!(bars, r#"<text x="{}" y="{text}" text-anchor="end">{contender}</text>"#, LEFT - 6.0)?;
            writeln!(bars, r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{}" fill="{color}"/>"#, BAR - 3.0)?;
            let (low, high) = (at(least), at(greatest));
            writeln!(bars, r##"<path d="M{low:.1} {middle}H{high:.1}" stroke="#1a202c"/>"##)?;
            writeln!(bars, r#"<text x="{:.1}" y="{text}">{median:.2}</text>"#, high + 5.0)?;
            y += BAR;
        }
        y += 24.0;
    }
    let one = LEFT + UNIT;
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
