// The Python module `_core`: the C ABI of kaoken.h as four Python classes, and no more. It computes nothing:
// arrays pass through, status codes become the exceptions of kaoken.errors, and the GIL is released around
// every call that does work. `python/kaoken/_core.pyi` documents what Python sees.
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kaoken/kaoken.h"

namespace py = pybind11;

namespace {

using Ids = py::array_t<int64_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

// Thrown in C++ and raised in Python as the class of kaoken.errors that `type` names.
class Error : public std::runtime_error {
 public:
  Error(const char *type, const std::string &message) : std::runtime_error(message), type(type) {}
  const char *const type;
};

void raise_in_python(std::exception_ptr exception) {
  try {
    if (exception) std::rethrow_exception(std::move(exception));
  } catch (const Error &error) {
    // Paths and variables of the environment need not be UTF-8.
    const std::string_view text = error.what();
    const auto message = py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
    PyErr_SetObject(py::module_::import("kaoken.errors").attr(error.type).ptr(), message.ptr());
  }
}

const char *error_type(kaoken_status status) {
  switch (status) {
    case KAOKEN_INVALID_ARGUMENT:
    case KAOKEN_TOKEN_OUT_OF_RANGE:
    case KAOKEN_CONTEXT_FULL:
      return "InputError";
    case KAOKEN_UNSUPPORTED_ISA:
      return "ISAError";
    default:
      return "KaokenError";
  }
}

// Must run on the thread that made the call: the message is that thread's.
void check(const kaoken_model_api &api, kaoken_status status) {
  if (status == KAOKEN_OK) return;
  const char *message = api.last_error();
  if (status == KAOKEN_OUT_OF_MEMORY) {
    py::set_error(PyExc_MemoryError, message);
    throw py::error_already_set();
  }
  throw Error(error_type(status), message);
}

std::atomic<bool> exiting{false};  // set by atexit, when the main thread and daemon threads alone are left
unsigned long main_thread = 0;     // of the interpreter

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

// Keeps a daemon thread from taking the GIL of an interpreter that ends: before Python 3.14 that ends the thread by an
// unwind which C++ does not survive. An atexit handler may still wait for the thread, so it goes on after a while.
void wait_for_the_end() {
  if (!exiting || PyThread_get_thread_ident() == main_thread) return;
  for (int i = 0; i < 50 || is_finalizing(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

template <typename Call>
kaoken_status without_gil(Call call) {
  PyThreadState *const thread = PyEval_SaveThread();
  const kaoken_status status = call();
  wait_for_the_end();
  PyEval_RestoreThread(thread);
  return status;
}

// The path's bytes as the file system has them, which need not be UTF-8.
std::string path_bytes(const py::object &path) {
  PyObject *bytes = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &bytes)) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(bytes);
}

constexpr char kSlots[] = "sequences of different lengths";

// What kaoken_model_info had at first.
constexpr size_t kFirstInfo = offsetof(kaoken_model_info, n_layer) + sizeof(int64_t);

// A baked model. It is never unloaded: sessions, their threads and Python strings may point into it.
class Library {
 public:
  explicit Library(const py::object &path) : path_(path_bytes(path)), api_(open(path_)) {}

  const kaoken_model_api &api() const { return api_; }
  const kaoken_model_info &info() const { return *api_.info; }

  int32_t kind() const {
    return info().size > offsetof(kaoken_model_info, kind) ? info().kind : int32_t{KAOKEN_DECODER};
  }

  // Whether the library's table of functions has the field at `offset`.
  bool has(size_t offset) const { return api_.size > offset; }
  void require(size_t offset, const char *what) const {
    if (has(offset)) return;
    throw Error("LibraryError", path_ + " was baked by an older Kaoken, which lacks " + what +
                                    ": bake the checkpoint again with this Kaoken");
  }

  std::optional<py::bytes> tokenizer() const {
    if (info().tokenizer == nullptr) return std::nullopt;
    return py::bytes(info().tokenizer, info().tokenizer_size);
  }

 private:
  static const kaoken_model_api &open(const std::string &path) {
    const kaoken_model_api *(*model)() = nullptr;
    std::string failure;
    {
      py::gil_scoped_release release;
      void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) model = reinterpret_cast<decltype(model)>(dlsym(handle, "kaoken_model"));
      if (model == nullptr) failure = handle == nullptr ? dlerror() : "it has no function kaoken_model";
    }
    if (model == nullptr) {
      throw Error("LibraryError", path + " is not a Kaoken model library (" + failure +
                                      "): make one with `kaoken bake CHECKPOINT -o FILE`");
    }
    return compatible(model(), path);
  }

  // An older library lacks what was appended since, so its size is looked at before any field: it must have what every
  // library has had, and require() asks for the rest.
  static const kaoken_model_api &compatible(const kaoken_model_api *api, const std::string &path) {
    const bool sized = api != nullptr && api->size >= offsetof(kaoken_model_api, session_step);
    if (sized && api->abi_version == KAOKEN_ABI_VERSION && api->info->size >= kFirstInfo) {
      static kaoken_cores cores;  // of all models in this process
      api->share_cores(&cores);
      return *api;
    }
    const std::string found = sized ? std::to_string(api->abi_version) : "of an unknown shape";
    throw Error("LibraryError", path + " was baked by an incompatible Kaoken (its ABI is " + found +
                                    ", this one's is " + std::to_string(KAOKEN_ABI_VERSION) +
                                    "): bake the checkpoint again with this Kaoken (`kaoken bake CHECKPOINT -o FILE`)");
  }

  std::string path_;
  const kaoken_model_api &api_;
};

// Holds a flag for its lifetime, or refuses: the ABI leaves it to the caller that one session serves one thread.
class Busy {
 public:
  explicit Busy(std::atomic<bool> &flag) : flag_(flag) {
    if (flag_.exchange(true, std::memory_order_acquire)) {
      throw Error("InputError",
                  "the session is in use: one session belongs to one thread, or one generation, at a time; "
                  "make a session for each");
    }
  }
  ~Busy() { flag_.store(false, std::memory_order_release); }
  Busy(const Busy &) = delete;
  Busy &operator=(const Busy &) = delete;

 private:
  std::atomic<bool> &flag_;
};

class Session {
 public:
  Session(std::shared_ptr<Library> library, int64_t batch, int32_t threads, const std::optional<std::string> &isa,
          int64_t n_positions)
      : library_(std::move(library)), batch_(batch) {
    const char *name = isa ? isa->c_str() : nullptr;
    const kaoken_session_options options{sizeof(kaoken_session_options), batch, threads, name, nullptr, 0, n_positions};
    if (n_positions) library_->require(offsetof(kaoken_model_api, session_positions), "a context of a session's own");
    check(api(), without_gil([&] { return api().session_create(&options, &session_); }));
  }
  ~Session() { api().session_destroy(session_); }
  Session(const Session &) = delete;
  Session &operator=(const Session &) = delete;

  const Library &library() const { return *library_; }
  const kaoken_model_api &api() const { return library_->api(); }
  kaoken_session *get() const { return session_; }
  std::atomic<bool> &busy() { return busy_; }

  int64_t batch() const { return batch_; }
  int64_t length() const { return api().session_length(session_); }
  int32_t threads() const { return api().session_threads(session_); }
  std::string isa() const { return api().session_isa(session_); }
  std::string isa_reason() const { return api().session_isa_reason(session_); }
  std::string executed_isa() const { return api().session_executed_isa(session_); }

  std::vector<int64_t> lengths() const {
    std::vector<int64_t> lengths(static_cast<size_t>(batch_), length());
    if (library_->has(offsetof(kaoken_model_api, session_slot_length))) {
      for (int64_t slot = 0; slot < batch_; ++slot) lengths[slot] = api().session_slot_length(session_, slot);
    }
    return lengths;
  }

  // The least length, other than 0, that a sequence can be rewound to. Older libraries keep all positions.
  int64_t earliest(int64_t slot) const {
    return library_->has(offsetof(kaoken_model_api, session_slot_earliest))
               ? api().session_slot_earliest(session_, slot)
               : 0;
  }

  void rewind(int64_t length) {
    const Busy busy(busy_);
    check(api(), api().session_rewind(session_, length));
  }

  void rewind_slot(int64_t slot, int64_t length) {
    const Busy busy(busy_);
    library_->require(offsetof(kaoken_model_api, session_slot_rewind), kSlots);
    check(api(), api().session_slot_rewind(session_, slot, length));
  }

  void fork(int64_t from, int64_t to) {
    const Busy busy(busy_);
    library_->require(offsetof(kaoken_model_api, session_fork), kSlots);
    check(api(), without_gil([&] { return api().session_fork(session_, from, to); }));
  }

  // ids [the sum of lengths] for the slots [sequences]; logits of the last position of each, or of all.
  py::array_t<float> step(const Ids &slots, const Ids &lengths, const Ids &ids, bool all) {
    const Busy busy(busy_);
    library_->require(offsetof(kaoken_model_api, session_step), kSlots);
    check_sum(lengths, ids);
    if (slots.size() != lengths.size()) throw Error("InputError", "there must be a length for each slot");
    const auto width = static_cast<py::ssize_t>(library_->info().vocab_size);
    py::array_t<float> logits({all ? ids.size() : lengths.size(), width});
    const kaoken_step step = {sizeof step,          lengths.size(), slots.data(),
                              lengths.data(),       ids.data(),     all ? lengths.data() : nullptr,
                              logits.mutable_data()};
    check(api(), without_gil([&] { return api().session_step(session_, &step); }));
    return logits;
  }

  // ids [the sum of lengths], and as many token types; counts [as many as lengths] of positions [the sum of counts].
  // Returns an encoder's outputs, [of a text or of a position][width], in `into` where it is given.
  std::optional<Floats> encode(const Ids &lengths, const Ids &ids, const std::optional<Ids> &types, bool hidden_states,
                               const std::optional<Ids> &counts, const std::optional<Ids> &positions,
                               std::optional<Floats> into) {
    const Busy busy(busy_);
    library_->require(offsetof(kaoken_model_api, session_encode), "encoders");
    check_sum(lengths, ids);
    if (types && types->size() != ids.size()) throw Error("InputError", "there must be a token type for each id");
    if (counts && (!positions || counts->size() != lengths.size())) {
      throw Error("InputError", "there must be a count for each text, and positions");
    }
    if (counts) check_sum(*counts, *positions);
    const kaoken_model_info &info = library_->info();
    std::optional<Floats> outputs;
    if (library_->kind() == KAOKEN_ENCODER) {
      const bool pools = !hidden_states && info.size > offsetof(kaoken_model_info, pools) && info.pools;
      const py::ssize_t rows = pools ? lengths.size() : counts ? positions->size() : ids.size();
      const auto width = static_cast<py::ssize_t>(hidden_states ? info.n_embd : info.output_width);
      outputs = into ? std::move(into) : Floats({rows, width});
      if (outputs->ndim() != 2 || outputs->shape(0) != rows || outputs->shape(1) != width) {
        throw Error("InputError",
                    "outputs must have the shape [" + std::to_string(rows) + ", " + std::to_string(width) + "]");
      }
    }
    const kaoken_texts texts = {sizeof texts,
                                lengths.size(),
                                lengths.data(),
                                ids.data(),
                                types ? types->data() : nullptr,
                                outputs ? outputs->mutable_data() : nullptr,
                                hidden_states,
                                counts ? counts->data() : nullptr,
                                counts ? positions->data() : nullptr};
    check(api(), without_gil([&] { return api().session_encode(session_, &texts); }));
    return outputs;
  }

  // That ids are as many as their lengths say.
  static void check_sum(const Ids &lengths, const Ids &ids) {
    const int64_t *begin = lengths.data(), *end = begin + lengths.size();
    const bool sound = std::all_of(begin, end, [&](int64_t length) { return length >= 0 && length <= ids.size(); });
    if (sound && std::accumulate(begin, end, int64_t{0}) == ids.size()) return;
    throw Error("InputError", "the lengths must add up to the " + std::to_string(ids.size()) + " ids");
  }

  // The count of [batch, count] ids.
  int64_t count(const Ids &ids) const {
    if (ids.ndim() == 2 && ids.shape(0) == batch_) return ids.shape(1);
    throw Error("InputError", "ids must have the shape [" + std::to_string(batch_) + ", count] of this session");
  }

  std::optional<py::array_t<float>> append(const Ids &ids, int32_t which) {
    const Busy busy(busy_);
    const int64_t count = this->count(ids);
    std::optional<py::array_t<float>> logits = output(count, which);
    const int64_t *input = ids.data();
    float *output = logits ? logits->mutable_data() : nullptr;
    check(api(), without_gil([&] { return api().session_append(session_, input, count, which, output); }));
    return logits;
  }

 private:
  std::optional<py::array_t<float>> output(int64_t count, int32_t which) const {
    const int64_t vocab_size = library_->info().vocab_size;
    if (which == KAOKEN_LOGITS_LAST) return py::array_t<float>({batch_, vocab_size});
    if (which == KAOKEN_LOGITS_ALL) return py::array_t<float>({batch_, count, vocab_size});
    return std::nullopt;
  }

  std::shared_ptr<Library> library_;
  int64_t batch_;
  kaoken_session *session_ = nullptr;
  std::atomic<bool> busy_{false};
};

// Owns its session until the last token: nothing else may use it meanwhile.
class Generation {
 public:
  // ids [batch, count], or, with lengths [batch], one sequence's behind the other's.
  Generation(std::shared_ptr<Session> session, const Ids &ids, const std::optional<Ids> &lengths,
             kaoken_generation_options options, std::vector<int64_t> eos_token_ids)
      : session_(std::move(session)), lease_(std::make_unique<Busy>(session_->busy())), eos_(std::move(eos_token_ids)) {
    options.size = sizeof(options);
    options.eos_token_ids = eos_.data();
    options.eos_count = eos_.size();
    const int64_t *input = ids.data();
    if (lengths) {
      session_->library().require(offsetof(kaoken_model_api, generation_create_ragged), kSlots);
      Session::check_sum(*lengths, ids);
      if (lengths->size() != session_->batch()) throw Error("InputError", "there must be a length for each sequence");
      const int64_t *each = lengths->data();
      check(api(), without_gil([&] {
              return api().generation_create_ragged(session_->get(), input, each, &options, &generation_);
            }));
      return;
    }
    const int64_t count = session_->count(ids);
    check(api(),
          without_gil([&] { return api().generation_create(session_->get(), input, count, &options, &generation_); }));
  }
  ~Generation() {
    if (generation_ != nullptr) api().generation_destroy(generation_);
  }
  Generation(const Generation &) = delete;
  Generation &operator=(const Generation &) = delete;

  std::pair<py::array_t<int64_t>, bool> next() {
    const Busy busy(busy_);
    py::array_t<int64_t> tokens(session_->batch());
    int64_t *output = tokens.mutable_data();
    int32_t done = 0;
    check(api(), without_gil([&] { return api().generation_next(generation_, output, &done); }));
    if (done != 0) lease_.reset();
    return {tokens, done != 0};
  }

 private:
  const kaoken_model_api &api() const { return session_->api(); }

  std::shared_ptr<Session> session_;
  std::unique_ptr<Busy> lease_;
  std::vector<int64_t> eos_;
  kaoken_generation *generation_ = nullptr;
  std::atomic<bool> busy_{false};
};

std::shared_ptr<Generation> generate(std::shared_ptr<Session> session, const Ids &ids,
                                     const std::optional<Ids> &lengths, int64_t max_new_tokens, bool do_sample,
                                     float temperature, int64_t top_k, float top_p, uint64_t seed,
                                     std::vector<int64_t> eos_token_ids, int64_t pad_token_id) {
  kaoken_generation_options options{};
  options.max_new_tokens = max_new_tokens;
  options.do_sample = do_sample;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  options.seed = seed;
  options.pad_token_id = pad_token_id;
  return std::make_shared<Generation>(std::move(session), ids, lengths, options, std::move(eos_token_ids));
}

template <typename Field>
auto info_field(Field kaoken_model_info::*field) {
  return [field](const Library &library) { return library.info().*field; };
}

void bind_library(py::module_ &module) {
  py::class_<Library, std::shared_ptr<Library>>(module, "Library")
      .def(py::init<const py::object &>(), py::arg("path"))
      .def_property_readonly("name", info_field(&kaoken_model_info::name))
      .def_property_readonly("kaoken_version", info_field(&kaoken_model_info::kaoken_version))
      .def_property_readonly("isas", info_field(&kaoken_model_info::isas))
      .def_property_readonly("description", info_field(&kaoken_model_info::description))
      .def_property_readonly("tokenizer", &Library::tokenizer)
      .def_property_readonly("kind",
                             [](const Library &self) {
                               return self.kind() == KAOKEN_DECODER   ? "decoder"
                                      : self.kind() == KAOKEN_ENCODER ? "encoder"
                                                                      : "encoder-decoder";
                             })
      .def_property_readonly("vocab_size", info_field(&kaoken_model_info::vocab_size))
      .def_property_readonly("n_positions", info_field(&kaoken_model_info::n_positions))
      .def_property_readonly("n_embd", info_field(&kaoken_model_info::n_embd))
      .def_property_readonly("n_layer", info_field(&kaoken_model_info::n_layer))
      .def(
          "session",
          [](std::shared_ptr<Library> self, int64_t batch, int32_t threads, const std::optional<std::string> &isa,
             int64_t n_positions) {
            return std::make_shared<Session>(std::move(self), batch, threads, isa, n_positions);
          },
          py::arg("batch") = 1, py::arg("threads") = 0, py::arg("isa") = py::none(), py::arg("n_positions") = 0);
}

void bind_session(py::module_ &module) {
  py::class_<Session, std::shared_ptr<Session>>(module, "Session")
      .def_property_readonly("batch", &Session::batch)
      .def_property_readonly("length", &Session::length)
      .def_property_readonly("threads", &Session::threads)
      .def_property_readonly("isa", &Session::isa)
      .def_property_readonly("isa_reason", &Session::isa_reason)
      .def_property_readonly("executed_isa", &Session::executed_isa)
      .def_property_readonly("lengths", &Session::lengths)
      .def("earliest", &Session::earliest, py::arg("slot") = 0)
      .def("rewind", &Session::rewind, py::arg("length"))
      .def("rewind_slot", &Session::rewind_slot, py::arg("slot"), py::arg("length"))
      .def("fork", &Session::fork, py::arg("source"), py::arg("target"))
      .def("step", &Session::step, py::arg("slots").noconvert(), py::arg("lengths").noconvert(),
           py::arg("ids").noconvert(), py::arg("all") = false)
      .def("encode", &Session::encode, py::arg("lengths").noconvert(), py::arg("ids").noconvert(),
           py::arg("types").noconvert() = py::none(), py::arg("hidden_states") = false,
           py::arg("counts").noconvert() = py::none(), py::arg("positions").noconvert() = py::none(),
           py::arg("outputs").noconvert() = py::none())
      .def("append", &Session::append, py::arg("ids").noconvert(), py::arg("which") = int32_t{KAOKEN_LOGITS_LAST})
      .def("generate", &generate, py::arg("ids").noconvert(), py::arg("lengths").noconvert() = py::none(),
           py::kw_only(), py::arg("max_new_tokens"), py::arg("do_sample"), py::arg("temperature"), py::arg("top_k"),
           py::arg("top_p"), py::arg("seed"), py::arg("eos_token_ids"), py::arg("pad_token_id"));
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  py::module_::import("atexit").attr("register")(py::cpp_function([] { exiting = true; }));
  py::register_local_exception_translator(raise_in_python);
  module.attr("ABI_VERSION") = KAOKEN_ABI_VERSION;
  module.attr("LOGITS_NONE") = int32_t{KAOKEN_LOGITS_NONE};
  module.attr("LOGITS_LAST") = int32_t{KAOKEN_LOGITS_LAST};
  module.attr("LOGITS_ALL") = int32_t{KAOKEN_LOGITS_ALL};
  bind_library(module);
  bind_session(module);
  py::class_<Generation, std::shared_ptr<Generation>>(module, "Generation").def("next", &Generation::next);
}
