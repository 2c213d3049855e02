// logits LIBRARY ISA ID...: writes the logits of every position of one sequence, float32, to standard output; the ISA
// that ran to standard error. ISA "best" leaves the choice to the library. Of an encoder it writes the vectors, and of
// an encoder-decoder the ids are the source as well. What processors under qemu are tested with.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kaoken/kaoken.h"

namespace {

const kaoken_model_api *load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  void *symbol = library ? dlsym(library, "kaoken_model") : nullptr;
  if (!symbol) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(1);
  }
  return reinterpret_cast<const kaoken_model_api *(*)()>(symbol)();
}

int fail(const kaoken_model_api *api) {
  std::fprintf(stderr, "%s\n", api->last_error());
  return 1;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  const kaoken_model_api *api = load(argv[1]);
  kaoken_session_options options = {sizeof options, 1, 2, std::strcmp(argv[2], "best") ? argv[2] : nullptr,
                                    nullptr,        0, 0};
  kaoken_session *session = nullptr;
  if (api->session_create(&options, &session)) return fail(api);
  std::vector<int64_t> ids;
  for (int i = 3; i < argc; ++i) ids.push_back(std::atoll(argv[i]));
  const auto count = static_cast<int64_t>(ids.size());
  std::vector<float> outputs(ids.size() * static_cast<size_t>(api->info->output_width));
  if (api->info->kind != KAOKEN_DECODER) {
    const kaoken_texts text = {sizeof text, 1, &count, ids.data(), nullptr, outputs.data(), 0, nullptr, nullptr};
    if (api->session_encode(session, &text)) return fail(api);
  }
  if (api->info->kind != KAOKEN_ENCODER) {
    if (api->session_append(session, ids.data(), count, KAOKEN_LOGITS_ALL, outputs.data())) return fail(api);
  }
  std::fwrite(outputs.data(), sizeof(float), outputs.size(), stdout);
  std::fprintf(stderr, "%s\n", api->session_executed_isa(session));
  api->session_destroy(session);
  return 0;
}
