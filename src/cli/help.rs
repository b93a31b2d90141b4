//! The help of the commands.
//! Does a paragraph fill the terminal, whatever the terminal's width is?

use clap::Command;

/// Returns the command with paragraphs that only the terminal's width breaks into lines.
pub(super) fn with_whole_paragraphs(command: Command) -> Command {
    let text = command.get_after_help().map(|text| join_lines(&text.to_string()));
    let command = command.mut_subcommands(with_whole_paragraphs);
    match text {
        Some(text) => command.after_help(text),
        None => command,
    }
}

/// Joins the lines of each paragraph. Indented lines, such as examples, stay.
fn join_lines(text: &str) -> String {
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
    let (mut joined, mut follows_prose) = (String::with_capacity(text.len()), false);
    for (number, line) in text.lines().enumerate() {
        if number > 0 {
            joined.push(if follows_prose && is_prose(line) { ' ' } else { '\n' });
        }
        joined.push_str(line);
        follows_prose = is_prose(line);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_joins_the_lines_of_a_paragraph_and_keeps_examples() {
        let text = "Examples:\n  outgate a\n  outgate b\n\nOne\nparagraph.\n\nAnother\none.";
        assert_eq!(join_lines(text), "Examples:\n  outgate a\n  outgate b\n\nOne paragraph.\n\nAnother one.");
    }
}
