//! A small document that is shown as aligned text on a terminal and written as Markdown.

/// A part of a document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Block {
    /// The title.
    Title(String),
    /// A heading.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// A list.
    List(Vec<String>),
    /// A table.
    Grid(Grid),
}

/// A table; the first column is text, the others are numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grid {
    /// Names of the columns.
    pub(crate) head: Vec<String>,
    /// The rows, each as long as the head.
    pub(crate) rows: Vec<Vec<String>>,
    /// Columns besides the first that are text.
    pub(crate) left: Vec<usize>,
}

/// Lines of running text are at most this long on a terminal.
const WIDTH: usize = 110;

/// The document as aligned text.
pub(crate) fn text(blocks: &[Block]) -> String {
    let parts = blocks.iter().map(|block| match block {
        Block::Title(title) => format!("{title}\n{}", "=".repeat(title.chars().count())),
        Block::Heading(heading) => heading.clone(),
        Block::Text(text) => wrapped(text, "", ""),
        Block::List(items) => {
            items.iter().map(|item| wrapped(item, "- ", "  ")).collect::<Vec<_>>().join("\n")
        }
        Block::Grid(grid) => grid.text(),
    });
    joined(parts)
}

/// The document as Markdown.
pub(crate) fn markdown(blocks: &[Block]) -> String {
    let parts = blocks.iter().map(|block| match block {
        Block::Title(title) => format!("# {title}"),
        Block::Heading(heading) => format!("## {heading}"),
        Block::Text(text) => text.clone(),
        Block::List(items) => {
            items.iter().map(|item| format!("- {}", unbroken(item))).collect::<Vec<_>>().join("\n")
        }
        Block::Grid(grid) => grid.markdown(),
    });
    joined(parts)
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.map(|part| part.trim_end().to_owned()).collect::<Vec<_>>().join("\n\n") + "\n"
}

impl Grid {
    fn text(&self) -> String {
        let rule = self.widths().iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("  ");
        let mut lines = vec![self.line(&self.head, "  ").trim_end().to_owned(), rule];
        lines.extend(self.rows.iter().map(|row| self.line(row, "  ").trim_end().to_owned()));
        lines.join("\n")
    }

    fn markdown(&self) -> String {
        let rule = self.widths().into_iter().enumerate().map(|(column, width)| {
            if self.is_left(column) { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
        });
        let mut lines = vec![self.line(&self.head, " | "), rule.collect::<Vec<_>>().join(" | ")];
        lines.extend(self.rows.iter().map(|row| self.line(row, " | ")));
        lines.iter().map(|line| format!("| {line} |")).collect::<Vec<_>>().join("\n")
    }

    fn line(&self, cells: &[String], between: &str) -> String {
        let padded = cells.iter().zip(self.widths()).enumerate().map(|(column, (cell, width))| {
            let space = " ".repeat(width - cell.chars().count());
            if self.is_left(column) { format!("{cell}{space}") } else { format!("{space}{cell}") }
        });
        padded.collect::<Vec<_>>().join(between)
    }

    fn is_left(&self, column: usize) -> bool {
        column == 0 || self.left.contains(&column)
    }

    /// The width of every column in characters, at least 3 as Markdown wants it.
    fn widths(&self) -> Vec<usize> {
        (0..self.head.len())
            .map(|column| {
                let cells =
                    std::iter::once(&self.head).chain(&self.rows).map(|row| row[column].chars().count());
                cells.max().unwrap_or(0).max(3)
            })
            .collect()
    }
}

fn unbroken(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Breaks lines between words; paragraphs stay apart.
fn wrapped(text: &str, first: &str, next: &str) -> String {
    let paragraphs = text.trim().split("\n\n").map(|paragraph| {
        let mut lines = Vec::new();
        let mut line = first.to_owned();
        let mut empty = true;
        for word in paragraph.split_whitespace() {
            if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::replace(&mut line, next.to_owned()));
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            line += word;
            empty = false;
        }
        lines.push(line);
        lines.join("\n")
    });
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        Grid {
            head: row(["method", "accuracy", "why"]),
            rows: vec![row(["mlb", "81.20±0.95", "x"]), row(["multi-loss", "9.00", "long"])],
            left: vec![2],
        }
    }

    #[test]
    fn aligned_text() {
        let blocks = [Block::Title("Two".to_owned()), Block::Grid(grid())];
        assert_eq!(
            text(&blocks),
            "\
Two
===

method        accuracy  why
----------  ----------  ----
mlb         81.20±0.95  x
multi-loss        9.00  long
"
        );
    }

    #[test]
    fn markdown_tables() {
        let blocks =
            [Block::Heading("Two".to_owned()), Block::Grid(grid()), Block::List(vec!["a\n  b".to_owned()])];
        assert_eq!(
            markdown(&blocks),
            "\
## Two

| method     |   accuracy | why  |
| ---------- | ---------: | ---- |
| mlb        | 81.20±0.95 | x    |
| multi-loss |       9.00 | long |

- a b
"
        );
    }

    #[test]
    fn long_lines_break_between_words() {
        let long = "word ".repeat(30);
        let broken = wrapped(&long, "- ", "  ");
        assert!(broken.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(broken.lines().count(), 2);
        assert!(broken.starts_with("- word") && broken.contains("\n  word"));
    }
}
