// A JSON checker that remembers a few strings on its way: one pass, no tree, nothing copied.
#pragma once
#include "abi.h"

enum { DEEPEST = 256 };

typedef struct { const u8 *at, *end; } cursor;

// A string to look for: its path from the root, and where it was found (between the quotes, escapes kept).
typedef struct { const char *outer, *inner; text found; } wanted;

static int same(text a, const char *b) {
  u32 i = 0;
  while (i < a.len && b[i] && a.at[i] == (u8)b[i]) i++;
  return i == a.len && !b[i];
}

static void blanks(cursor *c) {
  while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
}

static int take(cursor *c, u8 byte) {
  if (c->at == c->end || *c->at != byte) return 0;
  c->at++;
  return 1;
}

static int word(cursor *c, const char *expected) {
  while (*expected) if (!take(c, (u8)*expected++)) return 0;
  return 1;
}

static int hex_digit(u8 b) { return (b >= '0' && b <= '9') || ((b | 32) >= 'a' && (b | 32) <= 'f'); }

// One character past ASCII, as UTF-8: no overlong form, no surrogate, nothing beyond U+10FFFF.
static int wide(cursor *c) {
  u8 first = *c->at, low = 0x80, high = 0xbf;
  u32 more = first >= 0xc2 && first <= 0xdf ? 1 : (first & 0xf0) == 0xe0 ? 2 : first >= 0xf0 && first <= 0xf4 ? 3 : 0;
  if (!more || c->end - c->at <= (int)more) return 0;
  if (first == 0xe0) low = 0xa0;
  if (first == 0xed) high = 0x9f;
  if (first == 0xf0) low = 0x90;
  if (first == 0xf4) high = 0x8f;
  for (c->at++; more; more--, c->at++, low = 0x80, high = 0xbf)
    if (*c->at < low || *c->at > high) return 0;
  return 1;
}

static int escape(cursor *c) {
  if (c->at == c->end) return 0;
  u8 kind = *c->at++;
  if (kind == 'u') {
    for (int i = 0; i < 4; i++, c->at++)
      if (c->at == c->end || !hex_digit(*c->at)) return 0;
    return 1;
  }
  for (const char *known = "\"\\/bfnrt"; *known; known++)
    if (kind == (u8)*known) return 1;
  return 0;
}

static int string(cursor *c, text *inside) {
  if (!take(c, '"')) return 0;
  inside->at = c->at;
  while (c->at < c->end) {
    u8 byte = *c->at;
    if (byte == '"') {
      inside->len = (u32)(c->at++ - inside->at);
      return 1;
    }
    if (byte < 0x20) return 0;
    if (byte >= 0x80) {
      if (!wide(c)) return 0;
      continue;
    }
    c->at++;
    if (byte == '\\' && !escape(c)) return 0;
  }
  return 0;
}

static int digits(cursor *c) {
  const u8 *first = c->at;
  while (c->at < c->end && *c->at >= '0' && *c->at <= '9') c->at++;
  return c->at > first;
}

static int number(cursor *c) {
  take(c, '-');
  if (!take(c, '0') && !digits(c)) return 0;
  if (take(c, '.') && !digits(c)) return 0;
  if (take(c, 'e') || take(c, 'E')) {
    if (!take(c, '+')) take(c, '-');
    return digits(c);
  }
  return 1;
}

// One value. `level` counts the containers around it; `outer` is the root's key over it, if any.
static int value(cursor *c, u32 level, text outer, wanted *wants, u32 count);

static int member(cursor *c, u32 level, text outer, wanted *wants, u32 count) {
  text key;
  blanks(c);
  if (!string(c, &key)) return 0;
  blanks(c);
  if (!take(c, ':')) return 0;
  blanks(c);
  if (level < 2 && c->at < c->end && *c->at == '"') {
    text inside;
    if (!string(c, &inside)) return 0;
    for (u32 i = 0; i < count; i++) {
      int here = level ? wants[i].inner && same(outer, wants[i].outer) && same(key, wants[i].inner)
                       : !wants[i].inner && same(key, wants[i].outer);
      if (here) wants[i].found = inside;
    }
    return 1;
  }
  return value(c, level + 1, level ? (text){0} : key, wants, count);
}

static int value(cursor *c, u32 level, text outer, wanted *wants, u32 count) {
  blanks(c);
  if (level > DEEPEST || c->at == c->end) return 0;
  u8 first = *c->at, object = first == '{';
  text inside;
  if (first == '"') return string(c, &inside);
  if (first == 't') return word(c, "true");
  if (first == 'f') return word(c, "false");
  if (first == 'n') return word(c, "null");
  if (first != '[' && !object) return number(c);
  c->at++;
  blanks(c);
  if (take(c, object ? '}' : ']')) return 1;
  do {
    // What is looked for is in objects only, so an array hides all that is below it.
    int fine = object ? member(c, level, outer, wants, count) : value(c, level + 1, (text){0}, wants, 0);
    if (!fine) return 0;
    blanks(c);
  } while (take(c, ','));
  return take(c, object ? '}' : ']');
}

// Whether `document` is JSON; what was wanted and is there as a string is found.
static int check_json(text document, wanted *wants, u32 count) {
  cursor c = {document.at, document.at + document.len};
  if (!value(&c, 0, (text){0}, wants, count)) return 0;
  blanks(&c);
  return c.at == c.end;
}
