//! The pages of the manuals: their blocks, and their commands, run as a reader types them.
//!
//! A page is run from its beginning to its end in a fresh folder, which has links to the checkout's folders. In it
//!
//! - a `sh` block is run by bash. Variables and the current folder go on from block to block. It must succeed;
//! - a command with the comment `in its own terminal` is a server: it runs until the page ends;
//! - a `text` block after it is its output, with `…` for anything. Spaces and tabs count as one;
//! - the ports 8080, 8081, 4222 and 9000 are free ones instead.
//!
//! A comment before a block, which a reader of the page does not see, changes that: `<!-- file: PATH -->`, the block is that
//! file's content; `<!-- fails: WHY -->`, its last command must fail; `<!-- not run: WHY -->`.

mod shell;

pub use shell::Shell;

use crate::checkout;
use std::{fs, process::Command};

/// A page of the manuals.
pub struct Page {
    /// Its path in the checkout.
    pub path: String,
    /// Its Markdown.
    pub text: String,
}

/// A fenced block of a page.
#[derive(Debug, Clone)]
pub struct Block {
    /// The line of its fence, from 1.
    pub line: usize,
    /// The language after the fence.
    pub language: String,
    /// Its content.
    pub text: String,
    /// The comment before it.
    pub note: Option<Note>,
}

/// What a comment says of the block after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The block is the content of this file.
    File(String),
    /// Its last command fails, for this reason.
    Fails(String),
    /// It is not run, for this reason.
    NotRun(String),
}

impl Note {
    fn parse(line: &str) -> Option<Self> {
        let (kind, text) = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?.split_once(": ")?;
        match kind {
            "file" => Some(Self::File(text.to_owned())),
            "fails" => Some(Self::Fails(text.to_owned())),
            "not run" => Some(Self::NotRun(text.to_owned())),
            _ => None,
        }
    }
}

impl Page {
    /// The page at this path of the checkout.
    pub fn read(path: &str) -> Self {
        let text = fs::read_to_string(checkout().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        Self { path: path.to_owned(), text }
    }

    /// Every page that git knows, or would know if it were added.
    pub fn all() -> Vec<Self> {
        let args = ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"];
        let output = Command::new("git").args(args).current_dir(checkout()).output().expect("git runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let paths = String::from_utf8(output.stdout).expect("paths in UTF-8");
        paths.lines().filter(|path| checkout().join(path).is_file()).map(Self::read).collect()
    }

    /// Its fenced blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut note, mut open) = (Vec::new(), None, None::<Block>);
        for (number, line) in self.text.lines().enumerate() {
            match open.take() {
                Some(block) if line.starts_with("```") => blocks.push(block),
                Some(mut block) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                    open = Some(block);
                }
                None if line.starts_with("```") => {
                    let language = line.trim_start_matches('`').trim().to_owned();
                    open = Some(Block { line: number + 1, language, text: String::new(), note: note.take() });
                }
                None if line.is_empty() => {}
                None => note = Note::parse(line),
            }
        }
        assert!(open.is_none(), "{}: a block has no end", self.path);
        blocks
    }

    /// Its lines outside of blocks, numbered from 1.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut inside = false;
        let outside = self.text.lines().enumerate().filter(|(_, line)| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        });
        outside.map(|(number, line)| (number + 1, line)).collect()
    }

    /// The anchors of its headings, as GitHub makes them.
    pub fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for (_, line) in self.prose() {
            let text = line.trim_start_matches('#');
            if text.len() == line.len() || !text.starts_with(' ') {
                continue;
            }
            let kept = text.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
            let same = anchors.iter().filter(|known| **known == anchor).count();
            anchors.push(if same == 0 { anchor } else { format!("{anchor}-{same}") });
        }
        anchors
    }

    /// The targets of its links, with their lines.
    pub fn links(&self) -> Vec<(usize, &str)> {
        let links = self.prose().into_iter().flat_map(|(number, line)| {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            targets.map(move |target| (number, target))
        });
        links.collect()
    }
}
