// Continues a text greedily, in token ids: `storyteller 20 82 79 77 69 79 58` prints the 20 ids that follow the others.
#include <stdio.h>
#include <stdlib.h>

#include "kaoken/kaoken.h"

KAOKEN_DECLARE_MODEL(story);  // const kaoken_model_api *kaoken_model_story(void)

// Stops at the first call that fails, with its message.
static void check(const kaoken_model_api *model, kaoken_status status) {
  if (status == KAOKEN_OK) return;
  fprintf(stderr, "storyteller: %s\n", model->last_error());
  exit(1);
}

static int64_t likeliest(const float *logits, int64_t count) {
  int64_t best = 0;
  for (int64_t id = 1; id < count; ++id)
    if (logits[id] > logits[best]) best = id;
  return best;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: storyteller COUNT ID...\n");
    return 2;
  }
  const kaoken_model_api *model = kaoken_model_story();
  int64_t vocab_size = model->info->vocab_size;
  int64_t *prompt = malloc(argc * sizeof(int64_t));
  float *logits = malloc(vocab_size * sizeof(float));
  if (!prompt || !logits) return 1;
  for (int i = 2; i < argc; ++i) prompt[i - 2] = atoll(argv[i]);

  // One sequence; the default threads and the best instruction set.
  kaoken_session_options options = {.size = sizeof options, .batch = 1};
  kaoken_session *session;
  check(model, model->session_create(&options, &session));
  check(model, model->session_append(session, prompt, argc - 2, KAOKEN_LOGITS_LAST, logits));
  for (int left = atoi(argv[1]); left > 0; --left) {
    int64_t id = likeliest(logits, vocab_size);
    printf("%lld\n", (long long)id);
    if (left > 1) check(model, model->session_append(session, &id, 1, KAOKEN_LOGITS_LAST, logits));
  }
  model->session_destroy(session);
  free(logits);
  free(prompt);
  return 0;
}
