// Suggests labels for a GitHub issue or pull request from what its author wrote: one `github.labels.suggested`
// with a reason for each label, or nothing when there is nothing to add.

// Anything else (labeled, closed, assigned…) does not change the text, and answering `labeled` could go round in circles.
const ACTIONS = new Set(["opened", "edited", "reopened", "synchronize", "ready_for_review"]);

// What a conventional commit's type says, as in "fix(parser)!: …".
const PREFIXES = {
  fix: "bug", bug: "bug", feat: "feature", feature: "feature", docs: "docs", doc: "docs", perf: "performance",
  test: "tests", tests: "tests", ci: "ci", build: "build", refactor: "refactoring", revert: "revert", security: "security",
};

const RULES = [
  ["security", /\b(CVE-\d{4}-\d{4,}|vulnerabilit(y|ies)|remote code execution|(sql|command) injection|XSS|CSRF|SSRF)\b/i],
  ["bug", /\b(bug|crash(es|ed|ing)?|panic(s|ked)?|regression|segfault|broken|does(n['’]t| not) work|stopped working)\b/i],
  ["bug", /^\s*(Traceback \(most recent call last\)|thread '.*' panicked at|\w*(Error|Exception): |\s+at .+:\d+:\d+\)?$)/m],
  ["docs", /\b(documentation|readme|typos?|docs|spelling|docstring)\b/i],
  ["feature", /\b(feature request|add support for|would be (nice|great|useful)|please add|it should be possible)\b/i],
  ["performance", /\b(slow(er|ly)?|latency|memory leak|performance|throughput|100 ?% cpu)\b/i],
  ["dependencies", /\b(bump|upgrade|update) \S+ (from \S+ )?to v?\d/i],
  ["breaking", /\bBREAKING[ -]CHANGES?\b/],
];

// Files that a pull request or an issue names.
const PATHS = [
  ["docs", /(^|[\s(`/])(docs?\/[\w./-]+|[\w./-]+\.(md|rst|adoc))\b/],
  ["ci", /(^|[\s(`])\.github\/workflows\/[\w.-]+/],
  ["dependencies", /(^|[\s(`/])(package-lock\.json|Cargo\.lock|poetry\.lock|go\.sum|yarn\.lock)\b/],
];

// An instance lives for one event, so a label's first reason stays and no state is left over.
function suggest(subject, isPullRequest) {
  const found = new Map();
  const add = (label, reason) => found.has(label) || found.set(label, reason);
  const title = String(subject.title ?? "").trim();
  const body = String(subject.body ?? "").replace(/<!--[\s\S]*?-->/g, " ");
  // Prose only: code, quotes and links are somebody else's words. A stack trace is looked for before that.
  const prose = body.replace(/```[\s\S]*?(```|$)/g, " ").replace(/^>.*$/gm, " ").replace(/https?:\/\/\S+/g, " ");

  const conventional = /^(\w+)(\([^)]*\))?(!)?:\s/.exec(title);
  if (conventional) {
    const label = Object.hasOwn(PREFIXES, conventional[1].toLowerCase()) && PREFIXES[conventional[1].toLowerCase()];
    if (label) add(label, `the title starts with "${conventional[0].trim()}"`);
    if (conventional[3]) add("breaking", 'the title has "!:"');
  }
  for (const [label, pattern] of RULES) {
    const inTitle = pattern.exec(title);
    const inText = inTitle ?? pattern.exec(pattern.multiline ? body : prose);
    if (inText) add(label, `the ${inTitle ? "title" : "text"} says "${inText[0].trim().slice(0, 60)}"`);
  }
  for (const [label, pattern] of PATHS) {
    const path = pattern.exec(`${title}\n${body}`);
    if (path) add(label, `it names ${path[0].replace(/^[\s(`/]+/, "")}`);
  }
  if (!isPullRequest && (/\?\s*$/.test(title) || /^(how|why|what|when|where|can|is there|does)\b/i.test(title))) {
    add("question", "the title is a question");
  }
  if (isPullRequest && Number.isInteger(subject.additions) && Number.isInteger(subject.deletions)) {
    const lines = subject.additions + subject.deletions;
    const size = lines < 50 ? "small" : lines < 500 ? "medium" : "large";
    add(`size/${size}`, `${lines} changed lines`);
  }
  return found;
}

// `result<list<emission>, failure>`: what is returned is published; what is thrown as this is the error.
const invalid = (message) => ({ tag: "invalid", val: message });

export function handle(event) {
  let payload;
  try {
    payload = JSON.parse(fromUtf8(event.data));
  } catch (error) {
    throw invalid(`the body is not JSON: ${error.message}`);
  }
  const pullRequest = payload?.pull_request;
  const subject = pullRequest ?? payload?.issue;
  if (!subject) throw invalid("the body has neither `issue` nor `pull_request`");
  if (!ACTIONS.has(payload.action)) return [];

  const present = new Set((subject.labels ?? []).map((label) => String(label?.name ?? label).toLowerCase()));
  const found = [...suggest(subject, Boolean(pullRequest))].filter(([label]) => !present.has(label));
  if (found.length === 0) return [];
  const suggestion = {
    repository: payload.repository?.full_name ?? null,
    kind: pullRequest ? "pull_request" : "issue",
    number: subject.number,
    url: subject.html_url,
    title: subject.title,
    labels: found.map(([label]) => label),
    reasons: Object.fromEntries(found),
  };
  return [{
    type: "github.labels.suggested",
    data: toUtf8(JSON.stringify(suggestion)),
    contentType: undefined,
    subject: undefined,
    partitionKey: undefined,
  }];
}

// QuickJS has no TextDecoder. What is not UTF-8 throws, and so is answered as not JSON.
function fromUtf8(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; ) {
    const first = bytes[at++];
    const more = first < 0x80 ? 0 : first < 0xc2 ? -1 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : -1;
    let point = more === 0 ? first : first & (0x3f >> more);
    if (more < 0 || at + more > bytes.length) throw new Error("it is not UTF-8");
    for (const end = at + more; at < end; at++) {
      if ((bytes[at] & 0xc0) !== 0x80) throw new Error("it is not UTF-8");
      point = (point << 6) | (bytes[at] & 0x3f);
    }
    text += String.fromCodePoint(point);
  }
  return text;
}

function toUtf8(text) {
  return Uint8Array.from(unescape(encodeURIComponent(text)), (character) => character.charCodeAt(0));
}
