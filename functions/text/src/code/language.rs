//! The supported programming languages.

use tree_sitter::Node;

/// A programming language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Rust.
    Rust,
    /// Python.
    Python,
    /// JavaScript, with JSX.
    JavaScript,
    /// TypeScript.
    TypeScript,
    /// TypeScript with JSX.
    Tsx,
    /// Go.
    Go,
    /// Java.
    Java,
    /// C.
    C,
    /// C++.
    Cpp,
    /// Ruby.
    Ruby,
    /// Bash and other shells.
    Bash,
}

impl Language {
    /// Language of a file extension.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (_, extension) = name.rsplit_once('.')?;
        Some(match extension.to_ascii_lowercase().as_str() {
            "rs" => Self::Rust,
            "py" | "pyi" => Self::Python,
            "js" | "mjs" | "cjs" | "jsx" => Self::JavaScript,
            "ts" | "mts" | "cts" => Self::TypeScript,
            "tsx" => Self::Tsx,
            "go" => Self::Go,
            "java" => Self::Java,
            "c" | "h" => Self::C,
            "cpp" | "cc" | "cxx" | "hpp" | "hh" | "hxx" => Self::Cpp,
            "rb" | "rake" | "gemspec" => Self::Ruby,
            "sh" | "bash" => Self::Bash,
            _ => return None,
        })
    }

    /// Language of a media type in lower case: `text/x-python`, `application/javascript`.
    pub fn from_media_type(media: &str) -> Option<Self> {
        let subtype = media.strip_prefix("text/").or_else(|| media.strip_prefix("application/"))?;
        Some(match subtype.strip_prefix("x-").unwrap_or(subtype) {
            "rust" | "rustsrc" => Self::Rust,
            "python" | "python3" => Self::Python,
            "javascript" | "ecmascript" => Self::JavaScript,
            "typescript" => Self::TypeScript,
            "go" | "golang" => Self::Go,
            "java" | "java-source" => Self::Java,
            "c" | "csrc" | "chdr" => Self::C,
            "c++" | "c++src" | "c++hdr" => Self::Cpp,
            "ruby" => Self::Ruby,
            "sh" | "bash" | "shellscript" => Self::Bash,
            _ => return None,
        })
    }

    pub(super) fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::Rust => tree_sitter_rust::LANGUAGE,
            Self::Python => tree_sitter_python::LANGUAGE,
            Self::JavaScript => tree_sitter_javascript::LANGUAGE,
            Self::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT,
            Self::Tsx => tree_sitter_typescript::LANGUAGE_TSX,
            Self::Go => tree_sitter_go::LANGUAGE,
            Self::Java => tree_sitter_java::LANGUAGE,
            Self::C => tree_sitter_c::LANGUAGE,
            Self::Cpp => tree_sitter_cpp::LANGUAGE,
            Self::Ruby => tree_sitter_ruby::LANGUAGE,
            Self::Bash => tree_sitter_bash::LANGUAGE,
        }
        .into()
    }
}

/// Whether a node describes the following one: a comment or an attribute.
pub(super) fn is_annotation(node: Node<'_>) -> bool {
    let annotations = [
        "comment",
        "line_comment",
        "block_comment",
        "attribute_item",
        "decorator",
        "attribute_declaration",
        "template_parameter_list",
    ];
    annotations.contains(&node.kind())
}
