// Answers every GitHub event with one small `event.digested`: what happened, where, by whom, and the body's size
// and SHA-256, for a log, an audit trail or a search for duplicates.
#include "abi.h"
#include "json.h"
#include "sha256.h"

extern u8 __heap_base;
static u32 heap;

// Every call has an instance of its own, so memory is only ever taken. Null when there is no more.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, u32 old_size, u32 align, u32 size) {
  if (!heap) heap = (u32)&__heap_base;
  u32 at = (heap + align - 1) & ~(align - 1), end = at + size;
  u32 have = __builtin_wasm_memory_size(0) * 65536u;
  if (end < at) __builtin_trap();
  if (end > have && __builtin_wasm_memory_grow(0, (end - have + 65535) / 65536) == (__SIZE_TYPE__)-1) __builtin_trap();
  heap = end;
  u8 *fresh = (u8 *)at;
  for (u32 i = 0; i < old_size && i < size; i++) fresh[i] = ((u8 *)old)[i];
  return fresh;
}

typedef struct { u8 *at; u32 len; } buffer;

static void put(buffer *out, const char *constant) { while (*constant) out->at[out->len++] = (u8)*constant++; }

static void put_raw(buffer *out, text bytes) { for (u32 i = 0; i < bytes.len; i++) out->at[out->len++] = bytes.at[i]; }

// A string from JSON, escapes and all, or null.
static void put_found(buffer *out, text found) {
  if (!found.at) return put(out, "null");
  put(out, "\"");
  put_raw(out, found);
  put(out, "\"");
}

// A string that is not from JSON: at most six bytes a byte.
static void put_plain(buffer *out, text plain) {
  put(out, "\"");
  for (u32 i = 0; i < plain.len; i++) {
    u8 byte = plain.at[i];
    if (byte < 0x20) {
      put(out, "\\u00");
      out->at[out->len++] = (u8) "01"[byte >> 4];
      out->at[out->len++] = (u8) "0123456789abcdef"[byte & 15];
      continue;
    }
    if (byte == '"' || byte == '\\') out->at[out->len++] = '\\';
    out->at[out->len++] = byte;
  }
  put(out, "\"");
}

static void put_number(buffer *out, u32 number) {
  if (number >= 10) put_number(out, number / 10);
  out->at[out->len++] = (u8)('0' + number % 10);
}

#define CONSTANT(s) ((text){(const u8 *)(s), sizeof(s) - 1})

static outcome result;

__attribute__((export_name("handle"))) outcome *handle(const event *in) {
  wanted wants[] = {{"action", 0, {0}}, {"repository", "full_name", {0}}, {"sender", "login", {0}}};
  if (!check_json(in->data, wants, 3)) {
    result = (outcome){.is_error = 1, .failure = {0, CONSTANT("the body is not JSON, or nested deeper than 256 levels")}};
    return &result;
  }
  u8 hash[64];
  sha256_hex(in->data, hash);

  u32 found = wants[0].found.len + wants[1].found.len + wants[2].found.len;
  buffer out = {cabi_realloc(0, 0, 1, 6 * (in->id.len + in->type.len) + found + 256), 0};
  put(&out, "{\"event\":");
  put_plain(&out, in->id);
  put(&out, ",\"type\":");
  put_plain(&out, in->type);
  put(&out, ",\"action\":");
  put_found(&out, wants[0].found);
  put(&out, ",\"repository\":");
  put_found(&out, wants[1].found);
  put(&out, ",\"sender\":");
  put_found(&out, wants[2].found);
  put(&out, ",\"size\":");
  put_number(&out, in->data.len);
  put(&out, ",\"sha256\":\"");
  put_raw(&out, (text){hash, 64});
  put(&out, "\"}");

  static emission digested;
  digested = (emission){.type = CONSTANT("event.digested"), .data = {out.at, out.len}};
  result = (outcome){.emissions = {&digested, 1}};
  return &result;
}
