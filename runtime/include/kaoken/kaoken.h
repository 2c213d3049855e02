/* The public C ABI of a baked model.
 *
 * A model library exports `kaoken_model_<name>()`, and a shared library also `kaoken_model()`. Both return
 * one static table of functions. Nothing else is exported, nothing is thrown across, nothing aborts.
 *
 * Threads: distinct sessions may be used from distinct threads at the same time; one session (with its
 * generations) belongs to one thread at a time. A session keeps working in the child after fork().
 */
#ifndef KAOKEN_H
#define KAOKEN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when an existing field or function changes its meaning. New fields are only ever appended, so a
 * caller compares `size` with the offset of what it needs. */
#define KAOKEN_ABI_VERSION 1

typedef int32_t kaoken_status;
enum {
  KAOKEN_OK = 0,
  KAOKEN_INVALID_ARGUMENT = 1,   /* a null pointer, a count or an option outside its range */
  KAOKEN_TOKEN_OUT_OF_RANGE = 2, /* a token id outside [0, vocab_size) */
  KAOKEN_CONTEXT_FULL = 3,       /* a sequence would pass the session's n_positions */
  KAOKEN_OUT_OF_MEMORY = 4,
  KAOKEN_UNSUPPORTED_ISA = 5, /* an ISA that this library or this machine lacks */
  KAOKEN_INTERNAL = 6
};

/* What a model is. */
enum {
  KAOKEN_DECODER = 1,        /* ids to logits, with a cache */
  KAOKEN_ENCODER = 2,        /* texts to vectors */
  KAOKEN_ENCODER_DECODER = 3 /* a decoder whose sequences each attend to a text that an encoder has read */
};

/* What was baked. Every pointer is static and lives as long as the library. */
typedef struct kaoken_model_info {
  size_t size;                /* sizeof(kaoken_model_info) of the library */
  const char *name;           /* the model's name, a C identifier */
  const char *kaoken_version; /* the Kaoken that baked it */
  const char *isas;           /* the instruction sets inside, best last, separated by commas */
  const char *description;    /* JSON: source, revision, weights_sha256, dtype, settings, config */
  const char *tokenizer;      /* tokenizer.json, or NULL where the checkpoint had none */
  size_t tokenizer_size;      /* its bytes, without the final NUL */
  int64_t vocab_size;
  int64_t n_positions; /* of a sequence of a decoder, of a text of an encoder */
  int64_t n_embd;
  int64_t n_layer;
  int32_t kind;             /* KAOKEN_DECODER and so on */
  int64_t output_width;     /* floats of an output: vocab_size, or of an encoder what its head gives, or n_embd */
  int64_t token_types;      /* that an encoder tells apart; 0 where it has none */
  int64_t source_positions; /* of a text that a decoder attends to; 0 without an encoder */
  int32_t pools;            /* 1: an encoder's outputs are one a text; 0: one a position */
} kaoken_model_info;

typedef struct kaoken_session kaoken_session;
typedef struct kaoken_generation kaoken_generation;

typedef struct kaoken_session_options {
  size_t size;     /* sizeof(kaoken_session_options) of the caller */
  int64_t batch;   /* sequences side by side, at least 1 */
  int32_t threads; /* at most; 0: KAOKEN_THREADS, else one a core that this process may use */
  const char *isa; /* NULL: KAOKEN_ISA, else the best that this machine has */
  void *arena;     /* the session's large memory, aligned to 64 bytes, until it is destroyed; NULL: from the system */
  size_t arena_bytes;  /* at least what session_size says */
  int64_t n_positions; /* that each sequence of a decoder has room for, at most the model's; 0: as many as that */
} kaoken_session_options;

/* Which logits kaoken_model_api.append writes, float32. */
enum {
  KAOKEN_LOGITS_NONE = 0, /* none; `logits` may be NULL */
  KAOKEN_LOGITS_LAST = 1, /* [batch, vocab_size], of the last position */
  KAOKEN_LOGITS_ALL = 2   /* [batch, count, vocab_size] */
};

/* New tokens of some of a session's sequences, each as many as it has. */
typedef struct kaoken_step {
  size_t size;            /* sizeof(kaoken_step) of the caller */
  int64_t count;          /* sequences, at least 1 */
  const int64_t *slots;   /* [count] which they are, ascending, from 0 to batch - 1; NULL: the first `count` */
  const int64_t *lengths; /* [count] new tokens of each, at least 1 */
  const int64_t *ids;     /* [the sum of lengths] one sequence's behind the other's */
  const int64_t *outputs; /* [count] how many of its last tokens logits are written of, 0 to its length; NULL: 1 each */
  float *logits;          /* [the sum of outputs, vocab_size]; may be NULL where that is 0 */
} kaoken_step;

/* Texts for session_encode, as token ids. An encoder writes vectors of them, an encoder-decoder (T5) keeps them for its
 * decoder. The ids have the special tokens that the model expects, such as [CLS] and [SEP]. No text is padded: the ids
 * of all lie one behind another. Two texts of 3 and 2 tokens, for a BERT with n_embd = 384 and no head:
 *
 *   int64_t lengths[] = {3, 2}, ids[] = {101, 7592, 102, 101, 102};
 *   float outputs[5 * 384];  // rows 0 to 2 are the first text's positions, rows 3 and 4 the second's
 *   kaoken_texts texts = {.size = sizeof texts, .count = 2, .lengths = lengths, .ids = ids, .outputs = outputs};
 *
 * All pointers are the caller's, and none is kept. */
typedef struct kaoken_texts {
  size_t size;            /* sizeof(kaoken_texts) of the caller; fields may be left out from hidden_states on */
  int64_t count;          /* texts, at least 1; of an encoder-decoder at most the session's batch */
  const int64_t *lengths; /* [count] tokens of each; at least 1, at most n_positions or source_positions */
  const int64_t *ids;     /* [the sum of lengths] */
  const int64_t *types;   /* [the sum of lengths] token types, such as 0 and 1 of a pair of texts; NULL: 0 each */
  /* Of an encoder, written: [rows, output_width] float32, in the order of the texts. A row is a text where info->pools
   * is 1, and otherwise a position. NULL of an encoder-decoder, which writes nothing. */
  float *outputs;
  /* 1: outputs are what the head of an encoder reads, the last layer's vectors: [rows, n_embd], a row for each position
   * whether the model pools or not. 0: what the head gives. */
  int32_t hidden_states;
  /* Some positions of each text, counted from 0 in the text; both NULL: all. Where rows are positions, those that there
   * are rows of, such as the masks of a text; a text may have none. Where rows are texts, those that are pooled, at
   * least one and without a gap, such as all behind a prompt. Encoders alone. */
  const int64_t *counts;    /* [count] how many of each text */
  const int64_t *positions; /* [the sum of counts] ascending in each text */
} kaoken_texts;

/* Meanings as in transformers' GenerationMixin.generate. */
typedef struct kaoken_generation_options {
  size_t size;            /* sizeof(kaoken_generation_options) of the caller */
  int64_t max_new_tokens; /* at least 1; generation also stops at n_positions */
  int32_t do_sample;      /* 0: greedy, and the next four fields are not used */
  float temperature;      /* greater than 0 */
  int64_t top_k;          /* 0: off */
  float top_p;            /* in (0, 1]; 1: off */
  uint64_t seed; /* a draw depends on it, on the row and on the position alone: row 1 draws other tokens than row 0 */
  const int64_t *eos_token_ids; /* may be NULL where eos_count is 0 */
  size_t eos_count;
  int64_t pad_token_id; /* written for sequences that have finished before others; -1 is a mark that is no token */
} kaoken_generation_options;

/* How the calls of a process share its cores; all zero at first. */
typedef struct kaoken_cores {
  uint64_t words[2];
} kaoken_cores;

typedef struct kaoken_model_api {
  size_t size;          /* sizeof(kaoken_model_api) of the library */
  uint32_t abi_version; /* KAOKEN_ABI_VERSION of the library */
  const kaoken_model_info *info;

  /* The message of this thread's last failed call; "" before any. */
  const char *(*last_error)(void);

  /* A session is a KV cache for `batch` sequences, its scratch memory and its threads. */
  kaoken_status (*session_create)(const kaoken_session_options *options, kaoken_session **session);
  void (*session_destroy)(kaoken_session *session);
  /* Positions in the cache, of the longest sequence. */
  int64_t (*session_length)(const kaoken_session *session);
  int32_t (*session_threads)(const kaoken_session *session);
  /* The instruction set chosen for this session. */
  const char *(*session_isa)(const kaoken_session *session);
  /* The tag left by the code that really ran the last pass; "" before the first. */
  const char *(*session_executed_isa)(const kaoken_session *session);
  /* Forgets all but the first `length` positions of every sequence; fails as session_slot_rewind does. */
  kaoken_status (*session_rewind)(kaoken_session *session, int64_t length);
  /* Appends ids [batch, count], row-major, to every sequence; on failure the session is unchanged. */
  kaoken_status (*session_append)(kaoken_session *session, const int64_t *ids, int64_t count, int32_t which,
                                  float *logits);

  /* Appends the prompt ids [batch, count] to the session, then yields tokens [batch] a call. The session
   * must outlive the generation and must not be used beside it. */
  kaoken_status (*generation_create)(kaoken_session *session, const int64_t *ids, int64_t count,
                                     const kaoken_generation_options *options, kaoken_generation **generation);
  /* Writes one token for each sequence; *done becomes 1 with the last. A call after that is an error. */
  kaoken_status (*generation_next)(kaoken_generation *generation, int64_t *tokens, int32_t *done);
  void (*generation_destroy)(kaoken_generation *generation);

  /* Why the session runs its instruction set and no better one, as a sentence that lives as long as the session:
   * "avx2: avx512 needs avx512f, avx512bw, which this machine lacks". */
  const char *(*session_isa_reason)(const kaoken_session *session);

  /* A call takes as many threads as its session has, be they more than there are cores, and fewer where other calls of
   * this library compute at the same time or other processes take the cores; its own thread always.
   * Libraries of one process that are given the same cores, once, before their first session, count each other's calls
   * too. */
  void (*share_cores)(kaoken_cores *cores);

  /* Sequences with lengths of their own. A sequence lies in a slot, from 0 to batch - 1; its results do not depend on
   * those beside it. On failure the session is unchanged. */
  kaoken_status (*session_step)(kaoken_session *session, const kaoken_step *step);
  /* Positions of one sequence; -1 for a slot that is not there. */
  int64_t (*session_slot_length)(const kaoken_session *session, int64_t slot);
  /* Forgets all but its first `length` positions; with 0 the slot is as new, but for its source. Other lengths are
   * session_slot_earliest at least. */
  kaoken_status (*session_slot_rewind)(kaoken_session *session, int64_t slot, int64_t length);
  /* Makes the sequence of slot `to` a copy of the one of slot `from`. What they share lies in memory once. */
  kaoken_status (*session_fork)(kaoken_session *session, int64_t from, int64_t to);
  /* As generation_create, with prompts of lengths [batch] of their own, ids [the sum of lengths]. A sequence that
   * reaches n_positions has finished; generation_next goes on while one of the others has not. */
  kaoken_status (*generation_create_ragged)(kaoken_session *session, const int64_t *ids, const int64_t *lengths,
                                            const kaoken_generation_options *options, kaoken_generation **generation);

  /* Of an encoder: writes the outputs of each text; they do not depend on the other texts, and the session's batch does
   * not limit how many there are. Of an encoder-decoder: text i is what the sequence in slot i attends to from now on,
   * and the sequence begins anew. */
  kaoken_status (*session_encode)(kaoken_session *session, const kaoken_texts *texts);

  /* Bytes that a session with these options takes of an arena. Pages of it are used as they are needed. */
  kaoken_status (*session_size)(const kaoken_session_options *options, size_t *bytes);

  /* Positions that each sequence of a session may have. */
  int64_t (*session_positions)(const kaoken_session *session);

  /* The least length, other than 0, that a sequence can be rewound to; -1 for a slot that is not there. It is 0, so any
   * length, but where blocks see a window of the text: these keep no more than it and 512 positions more, counted from
   * the longest that the sequence was. */
  int64_t (*session_slot_earliest)(const kaoken_session *session, int64_t slot);
} kaoken_model_api;

/* Declares the entry point of a model library that is linked in, by the model's name. */
#ifdef __cplusplus
#define KAOKEN_DECLARE_MODEL(name) extern "C" const kaoken_model_api *kaoken_model_##name(void)
#else
#define KAOKEN_DECLARE_MODEL(name) const kaoken_model_api *kaoken_model_##name(void)
#endif

/* The one model of a shared library. */
const kaoken_model_api *kaoken_model(void);

#ifdef __cplusplus
}
#endif

#endif
