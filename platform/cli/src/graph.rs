//! The graph of functions and event types: finds cycles, and pipeline steps that two functions implement.

use nerve_broker::bus::EVENTS;
use nerve_core::{FunctionSpec, Name, Pattern, answer, manifest::RuntimeSpec, subject::EVENTS_PREFIX, tool};
use nerve_events::{EventData, known_types, retrieval::PromptReceived};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Maximum warnings of a plan.
const MAX_WARNINGS: usize = 10;

/// The functions after a deploy, by name.
pub(crate) struct Graph<'f> {
    functions: BTreeMap<&'f Name, &'f FunctionSpec>,
    /// Functions that are being deployed. Warnings about the others were reported when they were deployed.
    new: BTreeSet<&'f Name>,
}

impl<'f> Graph<'f> {
    /// Creates the graph of the deployed functions and `new` ones, which replace those with the same name.
    pub(crate) fn new(
        deployed: impl IntoIterator<Item = (&'f Name, &'f FunctionSpec)>,
        new: impl IntoIterator<Item = (&'f Name, &'f FunctionSpec)>,
    ) -> Self {
        let mut functions: BTreeMap<_, _> = deployed.into_iter().collect();
        let new: BTreeMap<_, _> = new.into_iter().collect();
        functions.extend(new.iter().map(|(name, spec)| (*name, *spec)));
        // Functions on a user's stream consume no events.
        functions.retain(|_, spec| spec.stream.as_deref().is_none_or(|stream| stream == EVENTS));
        Self { functions, new: new.into_keys().collect() }
    }

    /// Returns warnings about probable mistakes.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.cycles();
        warnings.extend(self.duplicate_steps());
        warnings.extend(self.duplicate_answers());
        let omitted = warnings.len().saturating_sub(MAX_WARNINGS);
        warnings.truncate(MAX_WARNINGS);
        if omitted > 0 {
            warnings.push(format!("{omitted} more warnings of this kind"));
        }
        warnings
    }

    /// Returns the shortest cycle through each new function that is not in another warning.
    fn cycles(&self) -> Vec<String> {
        let (mut warnings, mut named) = (Vec::new(), BTreeSet::new());
        for &name in &self.new {
            if named.contains(name) {
                continue;
            }
            let Some(path) = self.shortest_cycle(name) else { continue };
            let mut shown = name.to_string();
            for pair in path.windows(2) {
                let [(from, _), (to, ty)] = pair else { continue };
                named.insert(*from);
                shown.push_str(&format!(" → {ty} → {to}"));
            }
            warnings.push(format!(
                "cycle: {shown}. An event may circulate indefinitely; after worker.max_hops results it becomes a dead letter. \
                 Narrow `on` or `emits`, unless the functions end the cycle"
            ));
        }
        warnings
    }

    /// Returns the shortest path from a function to itself: functions, each with the event type that leads to it.
    fn shortest_cycle(&self, start: &'f Name) -> Option<Vec<(&'f Name, String)>> {
        let mut before: BTreeMap<&Name, (&'f Name, String)> = BTreeMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(from) = next.pop_front() {
            for (to, ty) in self.consumers_of(from) {
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

    /// Returns the functions that may consume output of this one, each with an event type. Steps of an agent are
    /// excluded, because its budget limits them.
    fn consumers_of(&self, from: &Name) -> Vec<(&'f Name, String)> {
        let Some(spec) = self.functions.get(from) else { return Vec::new() };
        let counted = |ty: &&Pattern| !(is_agent(spec) && tool::is_step(ty.as_str()));
        let mut consumers = Vec::new();
        for (name, other) in &self.functions {
            let types = spec.emits.iter().filter(counted).filter(|ty| !(other.tool.is_some() && is_call(ty)));
            if let Some(ty) = types.into_iter().find(|ty| consumes(other, ty)) {
                consumers.push((*name, ty.to_string()));
            }
        }
        consumers
    }

    /// Returns warnings about pairs of functions that implement the same step of the built-in pipeline, so that its
    /// events would be duplicated.
    fn duplicate_steps(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (one, other) in self.pairs() {
            let (Some(first), Some(second)) = (self.functions.get(one), self.functions.get(other)) else { continue };
            let known = || known_types().iter().filter_map(|known| Pattern::parse(known.ty.as_str()).ok());
            let emits = |spec: &FunctionSpec, ty: &Pattern| spec.emits.iter().any(|emits| emits.covers(ty.as_str()));
            let consumed = known().find(|ty| consume_the_same(first, second, ty));
            let emitted = known().find(|ty| emits(first, ty) && emits(second, ty));
            if let (Some(consumed), Some(emitted)) = (consumed, emitted) {
                warnings.push(format!(
                    "{one} and {other} both consume {consumed} and emit {emitted}: each {consumed} leads to two. Remove one of them \
                     (nerve remove {one}), unless both are intended"
                ));
            }
        }
        warnings
    }

    /// Returns warnings about pairs of functions that answer the same questions, at any step.
    fn duplicate_answers(&self) -> Vec<String> {
        let Ok(question) = Pattern::parse(PromptReceived::TYPE) else { return Vec::new() };
        let mut reached: BTreeSet<&Name> = BTreeSet::new();
        let mut next: Vec<&Name> = Vec::new();
        next.extend(self.functions.iter().filter(|(_, spec)| consumes(spec, &question)).map(|(name, _)| *name));
        while let Some(name) = next.pop() {
            if reached.insert(name) {
                next.extend(self.consumers_of(name).into_iter().map(|(to, _)| to));
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
                "{one} and {other} both lead from {} to {}: a question may be answered twice. Remove one of them, or have \
                 them consume events of different types",
                PromptReceived::TYPE,
                answer::GENERATED
            )
        };
        pairs.map(warning).collect()
    }

    /// Returns all pairs of functions of which at least one is new.
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

/// Whether the function consumes an event type that `types` covers.
fn consumes(spec: &FunctionSpec, types: &Pattern) -> bool {
    matching_subjects(spec, types).next().is_some()
}

/// Whether both consume a common event type that `types` covers. Patterns that overlap pairwise are equal or wildcards
/// in each token, so all three overlap.
fn consume_the_same(first: &FunctionSpec, second: &FunctionSpec, types: &Pattern) -> bool {
    matching_subjects(first, types).any(|one| matching_subjects(second, types).any(|other| one.overlaps(other)))
}

/// Returns the patterns of the function's `on` that overlap with `types`.
fn matching_subjects<'s>(spec: &'s FunctionSpec, types: &Pattern) -> impl Iterator<Item = &'s Pattern> {
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
    fn cycle_is_reported_once() {
        let alone = functions(&[("echo", "loop.x", "\"loop.x\"")]);
        let found = warnings(&BTreeMap::new(), &alone);
        assert!(found.len() == 1 && found[0].contains("echo → loop.x → echo"), "{found:?}");
        let there = functions(&[("a", "one", "\"two\""), ("b", "two", "\"three\"")]);
        assert_eq!(warnings(&BTreeMap::new(), &there), Vec::<String>::new());
        let closes = functions(&[("c", "*", "\"out\", \"one\"")]);
        let found = warnings(&there, &closes);
        assert!(found.iter().any(|one| one.contains("c → one → a") || one.contains("c → out → c")), "{found:?}");
        let far = functions(&[("c", "three", "\"one\"")]);
        let found = warnings(&there, &far);
        assert!(found.len() == 1 && found[0].contains("c → one → a → two → b → three → c"), "{found:?}");
        // Earlier warnings are not repeated.
        assert_eq!(warnings(&alone, &there), Vec::<String>::new());
    }

    #[test]
    fn wildcard_types_close_cycles() {
        let found = warnings(&BTreeMap::new(), &functions(&[("any", ">", "\"made.*\"")]));
        assert!(found.len() == 1 && found[0].contains("any → made.* → any"), "{found:?}");
    }

    #[test]
    fn duplicate_step_is_reported_and_fan_out_is_not() {
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
        let found = warnings(&pipeline, &step);
        assert!(
            found.len() == 1 && found[0].starts_with("retrieve and retriever both consume prompt.received"),
            "{found:?}"
        );
        let shortcut = functions(&[("quick", "prompt.received", "\"answer.generated\"")]);
        let found = warnings(&pipeline, &shortcut);
        assert!(found.len() == 1 && found[0].contains("answered twice"), "{found:?}");
        // Tools of one agent consume calls with different names.
        let tools =
            [("sum", "tool.called.sum", "\"tool.returned\""), ("find", "tool.called.find", "\"tool.returned\"")];
        assert_eq!(warnings(&BTreeMap::new(), &functions(&tools)), Vec::<String>::new());
        // A redeployed function is still one function.
        assert_eq!(warnings(&pipeline, &pipeline), Vec::<String>::new());
    }
}
