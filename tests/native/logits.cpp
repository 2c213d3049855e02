// logits ISA ID...: writes the logits of every position of one sequence, float32, to standard output; the ISA that ran
// to standard error. What NEON under qemu and older processors are checked with.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kaoken/kaoken.h"

KAOKEN_DECLARE_MODEL(first);

namespace {

int fail(const kaoken_model_api *api) {
  std::fprintf(stderr, "%s\n", api->last_error());
  return 1;
}

}  // namespace

int main(int argc, char **argv) {
  const kaoken_model_api *api = kaoken_model_first();
  kaoken_session_options options = {sizeof options, 1, 2, argv[1]};
  kaoken_session *session = nullptr;
  if (api->session_create(&options, &session)) return fail(api);
  std::vector<int64_t> ids;
  for (int i = 2; i < argc; ++i) ids.push_back(std::atoll(argv[i]));
  std::vector<float> logits(ids.size() * static_cast<size_t>(api->info->vocab_size));
  if (api->session_append(session, ids.data(), static_cast<int64_t>(ids.size()), KAOKEN_LOGITS_ALL, logits.data())) {
    return fail(api);
  }
  std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
  std::fprintf(stderr, "%s\n", api->session_executed_isa(session));
  api->session_destroy(session);
  return 0;
}
