//! Ranges and enclosing names in each language.

use super::*;
use crate::{
    chunk::{Chunk, ChunkSize, split},
    extract::Format,
};
use std::path::Path;
use tokenizers::Tokenizer;

fn tokenizer() -> Tokenizer {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models");
    let mut tokenizer = Tokenizer::from_file(models.join("pooling-cls/tokenizer.json")).unwrap();
    tokenizer.with_truncation(None).unwrap();
    tokenizer
}

const RUST: &str = r##"use std::fmt;

/// An order that is paid late.
#[derive(Debug)]
pub struct Order<T> {
    cents: u32,
    owner: T,
}

impl<T: Clone> fmt::Display for Order<T> {
    /// How much it costs.
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cents", self.cents)
    }
}

mod refunds {
    pub(super) fn refund(lines: &[u32]) -> u32 {
        let mut total = 0; // nothing yet
        for line in lines {
            total += line;
        }
        total
    }
}
"##;

const PYTHON: &str = r##"import os

# Orders that are paid late.
@dataclass
class Order(Base):
    """An order."""

    # How much it costs.
    @property
    def price(self, currency: str) -> int:
        if currency == "eur":
            return self.cents * 2
        return self.cents

    def refund(self):
        total = self.price("eur")
        for line in self.lines:
            total -= line.cents
        return total

async def main(args):
    print(args)
"##;

const JAVASCRIPT: &str = r##"import fs from "fs";

// Orders that are paid late.
export class Order extends Base {
  /** How much it costs. */
  price(currency) {
    return currency === "eur" ? this.cents * 2 : this.cents;
  }

  refund() {
    let total = this.price("eur");
    for (const line of this.lines) total -= line.cents;
    return total;
  }
}

// Adds up.
export const sum = (orders) => {
  let total = 0;
  for (const order of orders) total += order.price("eur");
  return total;
};

export default function main(args) {
  console.log(args);
}
"##;

const TYPESCRIPT: &str = r##"namespace Shop {
  // Orders that are paid late.
  export interface Priced<T> { cents: number; owner: T }

  @Injectable()
  export class Order<T> implements Priced<T> {
    // How much it costs.
    public price(currency: string): number {
      return currency === "eur" ? this.cents * 2 : this.cents;
    }

    private refund(lines: Line[]): number {
      let total: number = this.price("eur");
      for (const line of lines) total -= line.cents;
      return total;
    }
  }
}
"##;

const TSX: &str = r##"// Shows orders.
export function Orders({ orders }: Props) {
  return <ul>{orders.map((order) => <li key={order.id}>{order.name}</li>)}</ul>;
}

// Shows one order.
export const One = ({ order }: { order: Order }) => {
  return <b>{order.name}</b>;
};
"##;

const GO: &str = r##"package shop

import "fmt"

// Order is paid late.
type Order struct {
	Cents int
	Lines []Line
}

// Price says how much it costs.
func (o *Order) Price(currency string) int {
	if currency == "eur" {
		return o.Cents * 2
	}
	return o.Cents
}

func main() {
	fmt.Println("orders")
}
"##;

const JAVA: &str = r##"package shop;

import java.util.List;

/** Orders that are paid late. */
@Entity
public class Order extends Base {
    private int cents;

    public Order(int cents) {
        this.cents = cents;
    }

    // How much it costs.
    @Override
    public int price(String currency) {
        if (currency.equals("eur")) {
            return cents * 2;
        }
        return cents;
    }

    static int refund(List<Line> lines) {
        int total = 0;
        for (Line line : lines) total -= line.cents;
        return total;
    }
}
"##;

const C: &str = r##"#include <stdio.h>

/* An order that is paid late. */
struct order {
    int cents;
    struct line *lines;
};

/* How much it costs. */
static int *order_price(const struct order *order, const char *currency)
{
    if (currency[0] == 'e') {
        return order->cents * 2;
    }
    return order->cents;
}

int main(int argc, char **argv)
{
    printf("%d\n", argc);
    return 0;
}
"##;

const CPP: &str = r##"#include <vector>

namespace shop {

// Orders that are paid late.
template <typename T>
class Order : public Base {
public:
    // How much it costs.
    int price(const std::string &currency) const {
        if (currency == "eur") {
            return cents * 2;
        }
        return cents;
    }

    T &refund(std::vector<Line> lines);

private:
    int cents;
};

template <typename T>
T &Order<T>::refund(std::vector<Line> lines) {
    int total = 0;
    for (auto &line : lines) total -= line.cents;
    return total;
}

}
"##;

const RUBY: &str = r##"require "json"

module Shop
  # Orders that are paid late.
  class Order < Base
    # How much it costs.
    def price(currency)
      return @cents * 2 if currency == "eur"
      @cents
    end

    def self.refund(lines)
      total = 0
      lines.each { |line| total -= line.cents }
      total
    end
  end
end
"##;

const BASH: &str = r##"#!/bin/sh
set -eu

# How much it costs.
price() {
    if [ "$1" = eur ]; then
        echo $((cents * 2))
    else
        echo "$cents"
    fi
}

function refund {
    total=0
    for line in "$@"; do
        total=$((total - line))
    done
    cat <<END
Some text that is here
and here $total
END
}

price eur
"##;

const ALL: [(Language, &str); 11] = [
    (Language::Rust, RUST),
    (Language::Python, PYTHON),
    (Language::JavaScript, JAVASCRIPT),
    (Language::TypeScript, TYPESCRIPT),
    (Language::Tsx, TSX),
    (Language::Go, GO),
    (Language::Java, JAVA),
    (Language::C, C),
    (Language::Cpp, CPP),
    (Language::Ruby, RUBY),
    (Language::Bash, BASH),
];

fn chunks(language: Language, text: &str, max: usize) -> Vec<Chunk> {
    let chunks = split(text, Format::Code(language), ChunkSize { max, overlap: 0 }, &tokenizer()).unwrap();
    let mut covered = 0;
    for chunk in &chunks {
        assert_eq!(&text[chunk.start..chunk.end], chunk.text, "{language:?}");
        let left_out = &text[covered..chunk.start];
        assert!(!left_out.contains(char::is_alphanumeric), "{language:?}: {left_out}");
        covered = chunk.end;
    }
    assert!(!text[covered..].contains(char::is_alphanumeric), "{language:?}");
    chunks
}

/// All definitions of a tree.
fn definitions(node: Node<'_>, found: &mut Vec<Range<usize>>) {
    if is_definition(node) {
        found.push(node.byte_range());
    }
    node.children(&mut node.walk()).for_each(|child| definitions(child, found));
}

#[test]
fn definition_that_fits_is_not_split() {
    let tokenizer = tokenizer();
    let tokens = |text: &str| tokenizer.encode(text, false).unwrap().len();
    for (language, text) in ALL {
        let tree = parse(text, language).unwrap();
        assert!(!tree.root_node().has_error(), "{language:?}: {}", tree.root_node().to_sexp());
        let mut all = Vec::new();
        definitions(tree.root_node(), &mut all);
        assert!(all.len() >= 2, "{language:?}: {all:?}");
        for max in (8..160).step_by(4) {
            let chunks = chunks(language, text, max);
            assert!(chunks.iter().all(|chunk| tokens(&chunk.text) <= max), "{language:?} {max}: {chunks:#?}");
            for range in all.iter().filter(|range| tokens(&text[(*range).clone()]) <= max) {
                let whole = chunks.iter().any(|chunk| chunk.start <= range.start && range.end <= chunk.end);
                assert!(whole, "{language:?} {max}: {}\n{chunks:#?}", &text[range.clone()]);
            }
        }
    }
}

#[test]
fn chunk_has_the_names_of_enclosing_definitions() {
    for (language, text, expected, heading) in [
        (Language::Rust, RUST, "total += line", "mod refunds › fn refund"),
        (Language::Rust, RUST, "write!", "impl<T: Clone> fmt::Display for Order<T> › fn fmt"),
        (Language::Python, PYTHON, "total -= line.cents", "class Order(Base) › def refund"),
        (Language::JavaScript, JAVASCRIPT, "total -= line.cents", "class Order extends Base › refund"),
        (Language::JavaScript, JAVASCRIPT, "of orders", "sum"),
        (Language::TypeScript, TYPESCRIPT, "total -=", "namespace Shop › class Order<T> implements Priced<T> › refund"),
        (Language::Tsx, TSX, "<b>", "One"),
        (Language::Go, GO, "currency ==", "func (o *Order) Price"),
        (Language::Java, JAVA, "total -= line.cents", "class Order extends Base › int refund"),
        (Language::C, C, "currency[0]", "static int *order_price"),
        (Language::Cpp, CPP, "total -= line.cents", "namespace shop › T &Order<T>::refund"),
        (Language::Ruby, RUBY, "total -=", "module Shop › class Order < Base › def self.refund"),
        (Language::Bash, BASH, "total - line", "function refund"),
    ] {
        let tokenizer = tokenizer();
        let at = text.find(expected).unwrap();
        // The smallest chunk that contains the whole function.
        let sizes = (8..200).filter_map(|max| {
            let chunks = chunks(language, text, max);
            let chunk = chunks.into_iter().find(|chunk| chunk.start <= at && at < chunk.end)?;
            (chunk.heading.join(" › ") == heading).then_some(tokenizer.encode(chunk.text, false).unwrap().len())
        });
        assert!(sizes.count() > 5, "{language:?}: {expected}: {:#?}", chunks(language, text, 60));
    }
}

#[test]
fn comment_stays_with_its_definition() {
    for (language, text, note, what) in [
        (Language::Rust, RUST, "/// An order", "pub struct Order"),
        (Language::Python, PYTHON, "# How much", "def price"),
        (Language::Java, JAVA, "// How much", "public int price"),
        (Language::Go, GO, "// Price", "func (o *Order) Price"),
        (Language::Ruby, RUBY, "# How much", "def price"),
    ] {
        let chunks = chunks(language, text, 100);
        let with = |expected: &str| chunks.iter().position(|chunk| chunk.text.contains(expected));
        assert_eq!(with(note), with(what), "{language:?}: {chunks:#?}");
    }
}

#[test]
fn malformed_and_deeply_nested_code_is_split() {
    let deep = format!("x = {}1{}", "(".repeat(5000), ")".repeat(5000));
    let broken = "fn a( { let = ;;; }} impl \u{1F600} for ) fn b() { c() }\n".repeat(20);
    let tokenizer = tokenizer();
    for (language, text) in [(Language::Python, deep.as_str()), (Language::Rust, &broken), (Language::Cpp, PYTHON)] {
        let chunks = chunks(language, text, 30);
        let tokens = |chunk: &Chunk| tokenizer.encode(chunk.text.as_str(), false).unwrap().len();
        assert!(!chunks.is_empty() && chunks.iter().all(|chunk| tokens(chunk) <= 30));
    }
    assert!(chunks(Language::Go, "", 30).is_empty());
}
