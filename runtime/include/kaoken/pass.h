// What the generated code of a model and the runtime tell each other. Plain data only: this header is compiled
// with the flags of every ISA, so nothing in it may become a shared inline function.
#pragma once

#include <stdint.h>

#include "kaoken/kaoken.h"

namespace kaoken {

constexpr int64_t kPanel = 16;        // outputs per weight panel; the unit of every padded width
constexpr int64_t kPassTexts = 64;    // texts of an encoder's pass, at most
constexpr int64_t kTextRows = 512;    // rows of an encoder's pass that has several
constexpr int64_t kPage = 64;         // positions of a page of the cache, which attention merges at a time
constexpr int64_t kRewind = 512;      // positions that a sequence can always lose, where blocks keep a window
constexpr int64_t kSampleBlock = 64;  // logits whose largest and whose sum of weights are kept, when choosing a token
constexpr int64_t kAlignment = 64;    // bytes: blobs, arena buffers and their rows start on a cache line

// New positions of one sequence, in consecutive rows of every buffer of a pass.
struct Sequence {
  int64_t row;            // of the first of them
  int64_t count;          // how many there are
  int64_t past;           // the position of the first: the cache holds so many before it
  int64_t length;         // positions that the sequence has behind this pass
  const int32_t *pages;   // of its cache: position p lies in pages[p / kPage]
  int64_t source_length;  // of what an encoder has read for it
  const int32_t *source_pages;
  const int32_t *window_pages = nullptr;  // as `pages`, of blocks that see a window of the past, the last ones alone
};

// Sequences whose rows follow each other.
struct Batch {
  int64_t rows;
  int64_t count;
  const Sequence *sequences;
};

// Pages of keys and values, each with all that a sequence has of kPage positions (see cache.h).
struct Cache {
  void *memory;  // [pages][page_bytes]
  int64_t page_bytes;
};

// One forward pass, of a decoder or of an encoder. A sequence's results do not depend on those beside it. Rows are
// padded with zeros to a multiple of kPanel floats.
struct Pass {
  Batch batch;
  Batch outputs;         // what remains behind the last block's keys and values: the rows that outputs are asked of
  const int64_t *kept;   // [outputs.rows]: where each of them was in `batch`, ascending
  const int32_t *ids;    // [batch.rows], checked against the vocabulary
  const int32_t *types;  // [batch.rows] token types, of models that have them
  float *hidden;         // [rows][width]: the residual stream
  float *qkv;            // [rows]: queries, keys and values of the sublayer at work
  float *attended;       // [rows][n_head * head_dim]
  float *inner;          // [rows][n_inner]
  void *inputs;          // [rows]: what the next linear reads, in its own type, with its scales
  Cache cache;           // of the sequences; an encoder's holds one block at a time
  Cache window;          // of the blocks that see a window of the past
  Cache source;          // what the blocks of a decoder attend to of their sources
  Cache encoder;         // where the runtime keeps an encoder's
  float *output;         // [outputs.rows, or of a head that pools outputs.count][output_width]
  bool hidden_states;    // of an encoder with a head: `output` is what the head would read, [outputs.rows][width]
  const char *executed_isa;
};

// Which positions of a text an encoder's outputs need.
enum class Reads : int32_t { kAll, kFirst, kLast };

class Team;

// One thread's view of its team.
struct Worker {
  int index;
  int count;
  Team *team;
};

// Waits until every worker of the team has arrived.
void barrier(const Worker &worker);

// What choosing a token asks of an ISA: work on the blocks [first, end) of kSampleBlock values in a row of `count`.
struct SamplingCode {
  // maxima[b] = the largest logit of block b, a NaN counting as -infinity.
  void (*block_maxima)(const float *logits, int64_t count, int64_t first, int64_t end, float *maxima);
  // Logits become weights e^((logit - largest) * scale), 0 for a NaN; sums[b] = the sum over block b.
  void (*weigh)(float *logits, int64_t count, int64_t first, int64_t end, float largest, float scale, float *sums);
  // How many weights of the row are at least `least`.
  int64_t (*count)(const float *weights, int64_t count, float least);
  // Weights below `least` become 0; sums[b] = the sum over block b.
  void (*keep)(float *weights, int64_t count, int64_t first, int64_t end, float least, float *sums);
};

// One ISA's copy of a model.
struct Code {
  const char *isa;
  const char *features;  // of the processor that it needs, as cmake/isas.json spells them, with spaces between
  void (*forward)(Pass &pass, const Worker &worker);  // null: the ISA would help the model, but was not baked in
  void (*encode)(Pass &pass, const Worker &worker);   // sources into their cache; null without an encoder in front
  const SamplingCode *sampling;
};

// A baked model, as its generated library.cpp describes it.
struct Model {
  kaoken_model_info info;
  const Code *codes;  // best last
  int32_t code_count;
  int64_t hidden_width;  // floats, padded
  int64_t qkv_width;     // the largest of any block, as are the next two
  int64_t attention_width;
  int64_t inner_width;
  int64_t input_bytes;  // of a row of the widest inputs
  int64_t pass_rows;    // of the largest pass, unless more sequences have one row each
  int64_t page_bytes;   // of each kind of cache, 0 where there is none; multiples of kAlignment
  int64_t source_page_bytes;
  int64_t encoder_page_bytes;
  Reads reads;
  int64_t window_page_bytes = 0;  // of blocks that see a window of the past; `page_bytes` is of the others
  int64_t window_reach = 0;       // the largest distance at which one of them sees a position
};

}  // namespace kaoken
