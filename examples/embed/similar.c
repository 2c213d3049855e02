// Compares texts by their vectors, in token ids: `similar 2,7,9,3 2,8,3 2,5,5,3` prints how similar the first text is
// to each of the others, as the cosine of their vectors.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kaoken/kaoken.h"

KAOKEN_DECLARE_MODEL(embedder);  // const kaoken_model_api *kaoken_model_embedder(void)

// Stops at the first call that fails, with its message.
static void check(const kaoken_model_api *model, kaoken_status status) {
  if (status == KAOKEN_OK) return;
  fprintf(stderr, "similar: %s\n", model->last_error());
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count, size);
  if (memory) return memory;
  fprintf(stderr, "similar: out of memory\n");
  exit(1);
}

// The ids of a text, separated by commas, are written to `ids`, if that is not NULL. Returns how many there are.
static int64_t read_ids(const char *text, int64_t *ids) {
  int64_t count = 0;
  for (;;) {
    char *end;
    int64_t id = strtoll(text, &end, 10);
    if (end == text || (*end != ',' && *end != '\0')) {
      fprintf(stderr, "similar: a text is ids with a comma between them, such as 2,7,9,3\n");
      exit(2);
    }
    if (ids) ids[count] = id;
    ++count;
    if (*end == '\0') return count;
    text = end + 1;
  }
}

static double cosine(const float *a, const float *b, int64_t width) {
  double product = 0, a_squares = 0, b_squares = 0;
  for (int64_t i = 0; i < width; ++i) {
    product += (double)a[i] * b[i];
    a_squares += (double)a[i] * a[i];
    b_squares += (double)b[i] * b[i];
  }
  return product / sqrt(a_squares * b_squares);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: similar IDS IDS...\n");
    return 2;
  }
  const kaoken_model_api *model = kaoken_model_embedder();
  if (model->info->kind != KAOKEN_ENCODER || !model->info->pools) {
    fprintf(stderr, "similar: bake an encoder with a modules.json, which gives a vector for each text\n");
    return 1;
  }

  // The ids of all texts lie one behind another; no text is padded.
  int64_t texts = argc - 1, total = 0, width = model->info->output_width;
  int64_t *lengths = allocate(texts, sizeof(int64_t));
  for (int64_t i = 0; i < texts; ++i) total += lengths[i] = read_ids(argv[1 + i], NULL);
  int64_t *ids = allocate(total, sizeof(int64_t)), *next = ids;
  for (int64_t i = 0; i < texts; ++i) next += read_ids(argv[1 + i], next);

  float *vectors = allocate(texts * width, sizeof(float));
  kaoken_session_options options = {.size = sizeof options, .batch = 1};
  kaoken_session *session;
  check(model, model->session_create(&options, &session));
  kaoken_texts given = {.size = sizeof given, .count = texts, .lengths = lengths, .ids = ids, .outputs = vectors};
  check(model, model->session_encode(session, &given));
  for (int64_t i = 1; i < texts; ++i) printf("%.6f\n", cosine(vectors, vectors + i * width, width));

  model->session_destroy(session);
  free(vectors);
  free(ids);
  free(lengths);
  return 0;
}
