//! Reads decimal numbers exactly, in units of their last place.
//! Which number is written, without the rounding of binary fractions?

use toml::de::DeValue;

use super::Located;
use super::problem::Problem;
use super::reader::{Reader, Value};

impl Reader<'_> {
    /// Reads a number from 0 to `max` with at most `places` decimal places. The result is in units of the last place.
    pub(super) fn decimal(
        &mut self,
        value: &Value<'_>,
        (expected, max, places): (&str, u32, usize),
        help: &str,
    ) -> Option<Located<u32>> {
        #[cfg(test)]
        super::schema::tests::observe::shape(&value.key, super::schema::tests::observe::Shape::Decimal(max));
        let text = match value.node {
            DeValue::Integer(written) if written.radix() == 10 => written.as_str(),
            DeValue::Float(written) => written.as_str(),
            _ => {
                self.wrong_type(value, "a number", help);
                return None;
            }
        };
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let scaled = Some(format!("{whole}{decimals:0<places$}"))
            .filter(|number| digits(number) && (1..=3).contains(&whole.len()) && decimals.len() <= places)
            .and_then(|number| number.parse().ok())
            .filter(|scaled| *scaled <= max * 10_u32.pow(places as u32));
        if scaled.is_none() {
            self.problems.push(Problem::at(value.span, format!("`{}` is not {expected}", value.key)).help(help));
        }
        scaled.map(|scaled| value.located(scaled))
    }
}
