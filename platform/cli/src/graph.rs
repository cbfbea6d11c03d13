//! What leads to what among functions: circles that go on without end, and steps of a pipeline that two functions take.

use nerve_broker::bus::EVENTS;
use nerve_core::{FunctionSpec, Name, Pattern, answer, manifest::RuntimeSpec, subject::EVENTS_PREFIX, tool};
use nerve_events::known_types;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The event that an answer begins with.
const QUESTION: &str = "prompt.received";
/// The most warnings of a plan.
const MAX_WARNINGS: usize = 10;

/// The functions that will be deployed together, by name.
pub(crate) struct Graph<'f> {
    functions: BTreeMap<&'f Name, &'f FunctionSpec>,
    /// Those that are being deployed: what the others do among themselves was said when they were.
    new: BTreeSet<&'f Name>,
}

impl<'f> Graph<'f> {
    /// The graph of what is deployed with `new`, which replaces what has the same name.
    pub(crate) fn new(
        deployed: impl IntoIterator<Item = (&'f Name, &'f FunctionSpec)>,
        new: impl IntoIterator<Item = (&'f Name, &'f FunctionSpec)>,
    ) -> Self {
        let mut functions: BTreeMap<_, _> = deployed.into_iter().collect();
        let new: BTreeMap<_, _> = new.into_iter().collect();
        functions.extend(new.iter().map(|(name, spec)| (*name, *spec)));
        // What is bound to a stream of the user's own takes no events.
        functions.retain(|_, spec| spec.stream.as_deref().is_none_or(|stream| stream == EVENTS));
        Self { functions, new: new.into_keys().collect() }
    }

    /// What is likely a mistake, in sentences.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.circles();
        warnings.extend(self.double_steps());
        warnings.extend(self.double_answers());
        let left_out = warnings.len().saturating_sub(MAX_WARNINGS);
        warnings.truncate(MAX_WARNINGS);
        if left_out > 0 {
            warnings.push(format!("{left_out} more of the kind"));
        }
        warnings
    }

    /// The shortest circle through each new function that no other warning names.
    fn circles(&self) -> Vec<String> {
        let (mut warnings, mut named) = (Vec::new(), BTreeSet::new());
        for &name in &self.new {
            if named.contains(name) {
                continue;
            }
            let Some(path) = self.path_back(name) else { continue };
            let mut shown = name.to_string();
            for pair in path.windows(2) {
                let [(from, _), (to, ty)] = pair else { continue };
                named.insert(*from);
                shown.push_str(&format!(" → {ty} → {to}"));
            }
            warnings.push(format!(
                "a circle: {shown}. An event may come around without end; after worker.max_hops results in a row it is a dead \
                 letter. Narrow `on` or `emits`, unless the functions end it themselves"
            ));
        }
        warnings
    }

    /// The way from a function to itself: functions, each with a type that leads to it.
    fn path_back(&self, start: &'f Name) -> Option<Vec<(&'f Name, String)>> {
        let mut before: BTreeMap<&Name, (&'f Name, String)> = BTreeMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(from) = next.pop_front() {
            for (to, ty) in self.led_to(from) {
                if before.contains_key(to) {
                    continue;
                }
                before.insert(to, (from, ty));
                if to == start {
                    return Some(path(start, &before));
                }
                next.push_back(to);
            }
        }
        None
    }

    /// The functions that may be given what this one emits, and a type by which. An agent's steps are left out: its budget ends
    /// them.
    fn led_to(&self, from: &Name) -> Vec<(&'f Name, String)> {
        let Some(spec) = self.functions.get(from) else { return Vec::new() };
        let counted = |ty: &&Pattern| !(is_agent(spec) && tool::is_step(ty.as_str()));
        let mut found = Vec::new();
        for (name, other) in &self.functions {
            let types = spec.emits.iter().filter(counted).filter(|ty| !(other.tool.is_some() && is_call(ty)));
            if let Some(ty) = types.into_iter().find(|ty| takes(other, ty)) {
                found.push((*name, ty.to_string()));
            }
        }
        found
    }

    /// Pairs of functions that make the same step of Nerve's own pipeline: each event of it would be made twice.
    fn double_steps(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (one, other) in self.pairs() {
            let (Some(first), Some(second)) = (self.functions.get(one), self.functions.get(other)) else { continue };
            let known = || known_types().iter().filter_map(|known| Pattern::parse(known.ty.as_str()).ok());
            let emits = |spec: &FunctionSpec, ty: &Pattern| spec.emits.iter().any(|emits| emits.covers(ty.as_str()));
            let taken = known().find(|ty| take_the_same(first, second, ty));
            let made = known().find(|ty| emits(first, ty) && emits(second, ty));
            if let (Some(taken), Some(made)) = (taken, made) {
                warnings.push(format!(
                    "{one} and {other} both take {taken} and emit {made}: each {taken} has two of it. Remove one of them \
                     (nerve remove {one}), unless both are wanted"
                ));
            }
        }
        warnings
    }

    /// Pairs of functions that answer the same questions, at whatever step.
    fn double_answers(&self) -> Vec<String> {
        let Ok(question) = Pattern::parse(QUESTION) else { return Vec::new() };
        let mut reached: BTreeSet<&Name> = BTreeSet::new();
        let mut next: Vec<&Name> = Vec::new();
        next.extend(self.functions.iter().filter(|(_, spec)| takes(spec, &question)).map(|(name, _)| *name));
        while let Some(name) = next.pop() {
            if reached.insert(name) {
                next.extend(self.led_to(name).into_iter().map(|(to, _)| to));
            }
        }
        let answers = |name: &Name| {
            let spec = self.functions.get(name);
            reached.contains(name)
                && spec.is_some_and(|spec| spec.emits.iter().any(|emits| emits.covers(answer::GENERATED)))
        };
        let pairs = self.pairs().into_iter().filter(|(one, other)| answers(one) && answers(other));
        let warning = |(one, other): (&Name, &Name)| {
            format!(
                "{one} and {other} both lead from {QUESTION} to {}: a question may be answered twice. Remove one of them, or have \
                 them take events of different types",
                answer::GENERATED
            )
        };
        pairs.map(warning).collect()
    }

    /// Every two functions of which one is new.
    fn pairs(&self) -> Vec<(&'f Name, &'f Name)> {
        let mut pairs = Vec::new();
        let names: Vec<&'f Name> = self.functions.keys().copied().collect();
        for (index, one) in names.iter().enumerate() {
            let others = names.iter().skip(index + 1);
            pairs.extend(
                others
                    .filter(|other| self.new.contains(*one) || self.new.contains(**other))
                    .map(|other| (*one, *other)),
            );
        }
        pairs
    }
}

fn path<'f>(start: &'f Name, before: &BTreeMap<&Name, (&'f Name, String)>) -> Vec<(&'f Name, String)> {
    let (mut path, mut at) = (Vec::new(), start);
    while let Some((from, ty)) = before.get(at) {
        path.push((at, ty.clone()));
        at = from;
        if at == start {
            break;
        }
    }
    path.push((start, String::new()));
    path.reverse();
    path
}

fn is_agent(spec: &FunctionSpec) -> bool {
    matches!(&spec.run, RuntimeSpec::Builtin { function, .. } if function == tool::AGENT)
}

fn is_call(ty: &Pattern) -> bool {
    ty.as_str().starts_with(tool::CALL_TYPE_PREFIX)
}

/// Whether the function takes some event whose type `types` covers.
fn takes(spec: &FunctionSpec, types: &Pattern) -> bool {
    bound_to(spec, types).next().is_some()
}

/// Whether both take one event whose type `types` covers: what overlaps by pairs is a wildcard or the same in each token, so that
/// all three overlap.
fn take_the_same(first: &FunctionSpec, second: &FunctionSpec, types: &Pattern) -> bool {
    bound_to(first, types).any(|one| bound_to(second, types).any(|other| one.overlaps(other)))
}

/// What of the function's `on` has events whose type `types` covers.
fn bound_to<'s>(spec: &'s FunctionSpec, types: &Pattern) -> impl Iterator<Item = &'s Pattern> {
    let subjects = Pattern::parse(format!("{EVENTS_PREFIX}{types}")).ok();
    spec.on.iter().filter(move |on| subjects.as_ref().is_some_and(|subjects| on.overlaps(subjects)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Manifest;

    fn functions(tables: &[(&str, &str, &str)]) -> BTreeMap<Name, FunctionSpec> {
        let table = |(name, on, emits): &(&str, &str, &str)| {
            format!(
                "[function.{name}]\nruntime = \"wasm\"\nsource = \"a\"\non = [\"events.{on}\"]\nemits = [{emits}]\n"
            )
        };
        Manifest::parse(&tables.iter().map(table).collect::<String>()).unwrap().functions
    }

    fn warnings(deployed: &BTreeMap<Name, FunctionSpec>, new: &BTreeMap<Name, FunctionSpec>) -> Vec<String> {
        Graph::new(deployed, new).warnings()
    }

    #[test]
    fn circle_is_named_once_whoever_closes_it() {
        let alone = functions(&[("echo", "loop.x", "\"loop.x\"")]);
        let said = warnings(&BTreeMap::new(), &alone);
        assert!(said.len() == 1 && said[0].contains("echo → loop.x → echo"), "{said:?}");
        let there = functions(&[("a", "one", "\"two\""), ("b", "two", "\"three\"")]);
        assert_eq!(warnings(&BTreeMap::new(), &there), Vec::<String>::new());
        let closes = functions(&[("c", "*", "\"out\", \"one\"")]);
        let said = warnings(&there, &closes);
        assert!(said.iter().any(|said| said.contains("c → one → a") || said.contains("c → out → c")), "{said:?}");
        let far = functions(&[("c", "three", "\"one\"")]);
        let said = warnings(&there, &far);
        assert!(said.len() == 1 && said[0].contains("c → one → a → two → b → three → c"), "{said:?}");
        // What was there before is not said again.
        assert_eq!(warnings(&alone, &there), Vec::<String>::new());
    }

    #[test]
    fn wildcards_of_types_close_circles_too() {
        let said = warnings(&BTreeMap::new(), &functions(&[("any", ">", "\"made.*\"")]));
        assert!(said.len() == 1 && said[0].contains("any → made.* → any"), "{said:?}");
    }

    #[test]
    fn second_taker_of_a_step_is_named_and_a_fan_out_is_not() {
        let pipeline = functions(&[
            ("retrieve", "prompt.received", "\"documents.retrieved\""),
            ("generate", "documents.retrieved", "\"answer.token\", \"answer.generated\""),
            ("learn", "documents.retrieved", "\"weights.updated\""),
            ("german", "document.uploaded", "\"document.translated\""),
        ]);
        assert_eq!(warnings(&BTreeMap::new(), &pipeline), Vec::<String>::new());
        let fan_out = functions(&[("french", "document.uploaded", "\"document.translated\"")]);
        assert_eq!(warnings(&pipeline, &fan_out), Vec::<String>::new());
        let step = functions(&[("retriever", "prompt.received", "\"documents.retrieved\"")]);
        let said = warnings(&pipeline, &step);
        assert!(said.len() == 1 && said[0].starts_with("retrieve and retriever both take prompt.received"), "{said:?}");
        let shortcut = functions(&[("quick", "prompt.received", "\"answer.generated\"")]);
        let said = warnings(&pipeline, &shortcut);
        assert!(said.len() == 1 && said[0].contains("answered twice"), "{said:?}");
        // Tools of one agent take calls of different names.
        let tools =
            [("sum", "tool.called.sum", "\"tool.returned\""), ("find", "tool.called.find", "\"tool.returned\"")];
        assert_eq!(warnings(&BTreeMap::new(), &functions(&tools)), Vec::<String>::new());
        // Deployed again, it is still one function.
        assert_eq!(warnings(&pipeline, &pipeline), Vec::<String>::new());
    }
}
