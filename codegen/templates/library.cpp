// GEN(note)
// What the model is, and the C ABI over it.

#include "kaoken/embed.h"
#include "kaoken/library.h"

KAOKEN_EMBED(kaoken_GEN(name)_description, "description.json")
extern "C" const char *const kaoken_GEN(name)_description;
//% if tokenizer_size
KAOKEN_EMBED(kaoken_GEN(name)_tokenizer, "tokenizer.json")
extern "C" const char *const kaoken_GEN(name)_tokenizer;
//% endif

//% for isa in isas
namespace kaoken::GEN(isa.name)::model_GEN(name) {
void forward(Pass &pass, const Worker &worker);
//% if source
void encode(Pass &pass, const Worker &worker);
//% endif
extern const SamplingCode sampling;
}
//% endfor

namespace {

const kaoken::Code codes[] = {
//% for isa in known
//% if isa in isas
    {"GEN(isa.name)", "GEN(isa.cpu | join(" "))", kaoken::GEN(isa.name)::model_GEN(name)::forward, GEN("kaoken::" ~ isa.name ~ "::model_" ~ name ~ "::encode" if source else "nullptr"),
     &kaoken::GEN(isa.name)::model_GEN(name)::sampling},
//% else
    {"GEN(isa.name)", "GEN(isa.cpu | join(" "))", nullptr, nullptr, nullptr},
//% endif
//% endfor
};

const kaoken::Model model = {
    {
        sizeof(kaoken_model_info),
        "GEN(name)",
        "GEN(version)",
        "GEN(isa_names)",
        kaoken_GEN(name)_description,
//% if tokenizer_size
        kaoken_GEN(name)_tokenizer,
//% else
        nullptr,
//% endif
        GEN(tokenizer_size),
        GEN(graph.vocabulary),
        GEN(graph.stack.limit),
        GEN(graph.width),
        GEN(graph.blocks | length),
        GEN(kind),
        GEN(graph.output_width),
        GEN(graph.stack.embeddings.types.shape[0] if graph.stack.embeddings.types else 0),
        GEN(source.limit if source else 0),
        GEN(1 if graph.head and graph.head.pooling else 0),
    },
    codes,
    GEN(known | length),
    GEN(hidden_width),
    GEN(qkv_width),
    GEN(attention_width),
    GEN(inner_width),
    GEN(packed.input_bytes),
    GEN(pass_rows),
    GEN(page_bytes),
    GEN(source_page_bytes),
    GEN(encoder_page_bytes),
    kaoken::Reads::GEN(reads),
//% if window_page_bytes
    GEN(window_page_bytes),
    GEN(window_reach),
//% endif
};

}  // namespace

KAOKEN_EXPORT_MODEL(GEN(name), model)
