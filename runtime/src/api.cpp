// The C ABI: C++ exceptions end here, as status codes and messages.
#include <string.h>

#include <algorithm>
#include <new>

#include "errors.h"
#include "generation.h"
#include "kaoken/library.h"
#include "session.h"
#if !KAOKEN_SINGLE_THREADED
#include "share.h"
#endif

struct kaoken_session : kaoken::Session {
  using Session::Session;
};

struct kaoken_generation : kaoken::Generation {
  using Generation::Generation;
};

namespace kaoken {
namespace {

std::string &last_message() {
  thread_local std::string message;
  return message;
}

kaoken_status fail(kaoken_status status, const char *message, const char *cause = "") noexcept {
  try {
    last_message() = std::string(message) + cause;
  } catch (...) {
    last_message().clear();  // no memory even for the message; the status still tells
  }
  return status;
}

// Runs an action and turns what it throws into a status.
template <class Action>
kaoken_status guard(Action action) noexcept {
  try {
    action();
    return KAOKEN_OK;
  } catch (const Error &error) {
    return fail(error.status, error.what());
  } catch (const std::bad_alloc &) {
    return fail(KAOKEN_OUT_OF_MEMORY, "not enough memory for this batch; use a smaller one, or fewer positions");
  } catch (const std::invalid_argument &error) {
    return fail(KAOKEN_INVALID_ARGUMENT, error.what());
  } catch (const std::exception &error) {
    return fail(KAOKEN_INTERNAL, error.what());
  } catch (...) {
    return fail(KAOKEN_INTERNAL, "unknown error");
  }
}

template <class T>
void require(const T *pointer, const char *name) {
  if (!pointer) throw Error(KAOKEN_INVALID_ARGUMENT, std::string(name) + " is null");
}

// A caller's struct, which has at least its first `least` bytes; what it lacks behind them is 0. A longer one is of a
// later version, and what it says beyond this one is not looked at.
template <class T>
T given(const T *options, size_t least, const char *name) {
  require(options, name);
  if (options->size < least) {
    throw Error(KAOKEN_INVALID_ARGUMENT, std::string(name) + ".size is " + std::to_string(options->size) +
                                             "; set it to " + std::to_string(sizeof(T)) + ", the size of the struct");
  }
  T copy = {};
  memcpy(&copy, options, std::min(options->size, sizeof(T)));
  return copy;
}

constexpr size_t kFirstSessionOptions = offsetof(kaoken_session_options, arena);
constexpr size_t kFirstTexts = offsetof(kaoken_texts, hidden_states);

const char *last_error() { return last_message().c_str(); }

void session_destroy(kaoken_session *session) { delete session; }

int64_t session_length(const kaoken_session *session) { return session->length(); }
int64_t session_positions(const kaoken_session *session) { return session->positions(); }
int32_t session_threads(const kaoken_session *session) { return session->threads(); }
const char *session_isa(const kaoken_session *session) { return session->isa(); }
const char *session_isa_reason(const kaoken_session *session) { return session->isa_reason(); }
const char *session_executed_isa(const kaoken_session *session) { return session->executed_isa(); }

kaoken_status session_rewind(kaoken_session *session, int64_t length) {
  return guard([&] {
    require(session, "session");
    session->rewind(length);
  });
}

kaoken_status session_append(kaoken_session *session, const int64_t *ids, int64_t count, int32_t which, float *logits) {
  return guard([&] {
    require(session, "session");
    session->append(ids, count, which, logits);
  });
}

kaoken_status session_step(kaoken_session *session, const kaoken_step *step) {
  return guard([&] {
    require(session, "session");
    session->step(given(step, sizeof *step, "step"));
  });
}

int64_t session_slot_length(const kaoken_session *session, int64_t slot) {
  return slot >= 0 && slot < session->batch() ? session->length(slot) : -1;
}

int64_t session_slot_earliest(const kaoken_session *session, int64_t slot) {
  return slot >= 0 && slot < session->batch() ? session->earliest(slot) : -1;
}

kaoken_status session_slot_rewind(kaoken_session *session, int64_t slot, int64_t length) {
  return guard([&] {
    require(session, "session");
    session->rewind(slot, length);
  });
}

kaoken_status session_fork(kaoken_session *session, int64_t from, int64_t to) {
  return guard([&] {
    require(session, "session");
    session->fork(from, to);
  });
}

kaoken_status session_encode(kaoken_session *session, const kaoken_texts *texts) {
  return guard([&] {
    require(session, "session");
    session->encode(given(texts, kFirstTexts, "texts"));
  });
}

// `lengths(session)` is made once the session is known to be there.
template <class Lengths>
kaoken_status create_generation(kaoken_session *session, const int64_t *ids, const Lengths &lengths,
                                const kaoken_generation_options *options, kaoken_generation **generation) {
  return guard([&] {
    require(session, "session");
    require(generation, "generation");
    const kaoken_generation_options checked = given(options, sizeof *options, "options");
    *generation = new kaoken_generation(*session, ids, lengths(static_cast<size_t>(session->batch())), checked);
  });
}

kaoken_status generation_create(kaoken_session *session, const int64_t *ids, int64_t count,
                                const kaoken_generation_options *options, kaoken_generation **generation) {
  return create_generation(
      session, ids, [&](size_t batch) { return std::vector<int64_t>(batch, count); }, options, generation);
}

kaoken_status generation_create_ragged(kaoken_session *session, const int64_t *ids, const int64_t *lengths,
                                       const kaoken_generation_options *options, kaoken_generation **generation) {
  const auto copy = [&](size_t batch) {
    require(lengths, "lengths");
    return std::vector<int64_t>(lengths, lengths + batch);
  };
  return create_generation(session, ids, copy, options, generation);
}

kaoken_status generation_next(kaoken_generation *generation, int64_t *tokens, int32_t *done) {
  return guard([&] {
    require(generation, "generation");
    require(done, "done");
    *done = generation->next(tokens);
  });
}

void generation_destroy(kaoken_generation *generation) { delete generation; }

#if KAOKEN_SINGLE_THREADED
void set_cores(kaoken_cores *) {}
#else
void set_cores(kaoken_cores *cores) {
  static_assert(sizeof(Calls) == sizeof(kaoken_cores) && alignof(Calls) == alignof(kaoken_cores));
  if (cores) share_cores(reinterpret_cast<Calls *>(cores));
}
#endif

}  // namespace

kaoken_status session_create(const Model &model, const kaoken_session_options *options,
                             kaoken_session **session) noexcept {
  return guard([&] {
    require(session, "session");
    *session = new kaoken_session(model, given(options, kFirstSessionOptions, "options"));
  });
}

kaoken_status session_size(const Model &model, const kaoken_session_options *options, size_t *bytes) noexcept {
  return guard([&] {
    require(bytes, "bytes");
    *bytes = Session::bytes(model, given(options, kFirstSessionOptions, "options"));
  });
}

kaoken_model_api make_api(const Model &model, SessionCreate create, SessionSize size) noexcept {
  return {
      sizeof(kaoken_model_api),
      KAOKEN_ABI_VERSION,
      &model.info,
      last_error,
      create,
      session_destroy,
      session_length,
      session_threads,
      session_isa,
      session_executed_isa,
      session_rewind,
      session_append,
      generation_create,
      generation_next,
      generation_destroy,
      session_isa_reason,
      set_cores,
      session_step,
      session_slot_length,
      session_slot_rewind,
      session_fork,
      generation_create_ragged,
      session_encode,
      size,
      session_positions,
      session_slot_earliest,
  };
}

}  // namespace kaoken
