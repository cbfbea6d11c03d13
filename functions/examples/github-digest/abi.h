// The guest contract of functions/wit/nerve.wit as C sees it: the component model's canonical layout of an
// event, of an emission and of what `handle` returns.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

typedef struct { const u8 *at; u32 len; } text;
typedef struct { u32 some; text value; } maybe_text; // the tag is one byte, padded to four

typedef struct {
  text id, source, type;
  maybe_text subject, time, content_type;
  struct { const void *at; u32 len; } extensions;
  text data;
} event;

typedef struct {
  text type, data;
  maybe_text content_type, subject, partition_key;
} emission;

typedef struct {
  u32 is_error;
  union {
    struct { const emission *at; u32 len; } emissions;
    struct { u32 kind; text message; } failure; // kind 0: invalid, 1: retry
  };
} outcome;

_Static_assert(sizeof(event) == 76 && sizeof(emission) == 52 && sizeof(outcome) == 16, "nerve.wit has changed");
