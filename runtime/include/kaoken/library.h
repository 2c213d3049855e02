// What a generated library.cpp needs to turn a Model into the C ABI.
#pragma once

#include "kaoken/pass.h"

#define KAOKEN_PUBLIC __attribute__((visibility("default")))

namespace kaoken {

using SessionCreate = kaoken_status (*)(const kaoken_session_options *options, kaoken_session **session);
using SessionSize = kaoken_status (*)(const kaoken_session_options *options, size_t *bytes);

// The model's table of functions; `create` and `size` are the functions below bound to the model.
kaoken_model_api make_api(const Model &model, SessionCreate create, SessionSize size) noexcept;

kaoken_status session_create(const Model &model, const kaoken_session_options *options,
                             kaoken_session **session) noexcept;
kaoken_status session_size(const Model &model, const kaoken_session_options *options, size_t *bytes) noexcept;

}  // namespace kaoken

#define KAOKEN_EXPORT_MODEL(name, model)                                                                 \
  static kaoken_status create_session(const kaoken_session_options *options, kaoken_session **session) { \
    return kaoken::session_create(model, options, session);                                              \
  }                                                                                                      \
  static kaoken_status size_session(const kaoken_session_options *options, size_t *bytes) {              \
    return kaoken::session_size(model, options, bytes);                                                  \
  }                                                                                                      \
  extern "C" KAOKEN_PUBLIC const kaoken_model_api *kaoken_model_##name(void);                            \
  const kaoken_model_api *kaoken_model_##name(void) {                                                    \
    static const kaoken_model_api api = kaoken::make_api(model, create_session, size_session);           \
    return &api;                                                                                         \
  }                                                                                                      \
  KAOKEN_EXPORT_ONLY_MODEL(name)

#if KAOKEN_SHARED_LIBRARY
#define KAOKEN_EXPORT_ONLY_MODEL(name) \
  extern "C" KAOKEN_PUBLIC const kaoken_model_api *kaoken_model(void) { return kaoken_model_##name(); }
#else
#define KAOKEN_EXPORT_ONLY_MODEL(name)
#endif
