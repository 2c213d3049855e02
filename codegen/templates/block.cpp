//% from "arrays.inc" import arrays with context
//% macro product(name)
{GEN(packed_block.products[name] | value), GEN(name)_bias, GEN(nexts[name] | default("nullptr"))}
//%- endmacro
//% macro norm(each)
{GEN(each.norm | join(", "))}
//%- endmacro
//% macro branch(each)
//% set by = each.sublayer.branch
GEN(", NormedBranch<" ~ norms[by.kind] ~ ">{{" ~ each.branch | join(", ") ~ (", nullptr" if each.branch | length == 1 else "") ~ "}, " ~ (by.epsilon | float32) ~ "}" if by else "")
//%- endmacro
//% macro entry(each)
  static constexpr int64_t kWidth = GEN(width);
  using Norm = GEN(norms[each.sublayer.before.kind] if each.sublayer.before else "NoNorm");
  static constexpr float kEpsilon = GEN((each.sublayer.before.epsilon if each.sublayer.before else 0.0) | float32);
  static constexpr bool kReplaces = GEN(each.sublayer.replaces | lower);
//% endmacro
//% macro bias_type(body)
//% if body.relative
RelativeBias<CacheType, GEN(body.relative.count | round_up), GEN((body.relative.keys is not none) | lower), GEN((body.relative.queries is not none) | lower)>
//%- else
GEN("DistanceBias" if body.distance_bias else "NoBias")
//%- endif
//%- endmacro
//% macro rotary_type(body)
//% set turned = "Rotary" if body.rotary else "NoRotary"
//% if body.whole_norms
NormedRows<GEN(turned), GEN(body.heads * body.head_dim), GEN(body.kv_heads * body.head_dim)>
//%- else
GEN("NormedHeads<" ~ turned ~ ", " ~ body.head_dim ~ ">" if body.query_norm else turned)
//%- endif
//%- endmacro
//% macro scheme(each, layout)
//% set body = each.sublayer.body
  using Scheme = KAOKEN_ISA::Scheme<GEN(layout)<GEN(body.heads), GEN(body.kv_heads), GEN(body.dims)>, CacheType, GEN(rotary_type(body)), GEN(bias_type(body)), Sees::GEN(sees[body.sees])GEN("" if body.reach is none else ", " ~ body.reach)>;
//% endmacro
// GEN(note)
// From: GEN(units | sources)

#include "model.h"

namespace kaoken::KAOKEN_ISA::model_GEN(name) {

//% for each in packed_block.sublayers
//% set body = each.sublayer.body
struct GEN(unit.name)_GEN(each.name) {
GEN(entry(each) | trim("\n"))
//% if each.name == "attention"
GEN(scheme(each, "Layout") | trim("\n"))
  static constexpr bool kLast = GEN(last | lower);
  using Qkv = GEN(packed_block.products.qkv | kind);
  using Out = GEN(packed_block.products.out | kind);
//% elif each.name == "cross"
GEN(scheme(each, "QueryLayout") | trim("\n"))
  using Query = GEN(packed_block.products.cross_query | kind);
  using Out = GEN(packed_block.products.cross_out | kind);
//% else
  static constexpr int64_t kInner = GEN(body.inner);
//% if packed_block.parallel
  static constexpr bool kSharesInputs = GEN(packed_block.shares_inputs | lower);
//% endif
  static constexpr bool kGated = GEN((body.gate is not none) | lower);
  using Activation = GEN(body.activation)_activation;
  using Up = GEN(packed_block.products.up | kind);
  using Down = GEN(packed_block.products.down | kind);
//% endif
};

//% endfor
//% for matrix in packed_block.matrices
//% for strip in matrix.strips
void GEN(strip.name)(const float *x, float *sums);
//% endfor
//% endfor
void GEN(unit.name)(Pass &pass, const Worker &worker) {
//% if packed_block.tables
GEN(arrays(tables))
//% endif
//% for each in pass_units
GEN(arrays(each))
//% endfor
//% for matrix in packed_block.matrices
//% if matrix.strip_files
  static constexpr Strip GEN(matrix.name)_strips[] = {
//% for strip in matrix.strips
      {GEN(strip.name), GEN(strip.first), GEN(strip.panels)},
//% endfor
  };
//% endif
//% endfor
//% for each in packed_block.sublayers
//% if each.name == "attention"
  static_assert(CacheOf<GEN(unit.name)_attention::Scheme>::kHeadBytes * GEN(each.sublayer.body.kv_heads) == GEN(cache_bytes.attention));
//% set relative = each.relative
//% macro among(name)
GEN(name if name in relative else "nullptr")
//%- endmacro
//% set bias = "{{" ~ among("relative_key_weight") ~ ", " ~ among("relative_key_scale") ~ ", " ~ among("relative_key_sum") ~ "}, " ~ among("relative_queries") ~ ", " ~ buckets ~ ", " ~ stack.limit ~ "}" if relative else "{" ~ distances.name ~ ", " ~ distances.size // each.sublayer.body.heads ~ ", " ~ stack.limit ~ "}" if distances else "{}"
//% set turning = "{{" ~ rotary ~ "}, " ~ each.heads | join(", ") ~ ", " ~ (each.sublayer.body.query_norm.epsilon | float32) ~ "}" if each.heads else "{" ~ rotary ~ "}"
//% if packed_block.parallel
//% set beside = packed_block.sublayers[-1]
  if (!parallel<GEN(unit.name)_attention, GEN(unit.name)_mlp>(
          pass, worker, GEN(cache_before.attention), GEN(norm(each)),
          GEN(product("qkv")),
          GEN(product("out")), GEN(turning), GEN(bias), GEN(norm(beside)),
          GEN(product("up")),
          GEN(product("down")))) {
    return;
  }
//% else
  if (!self_attention<GEN(unit.name)_attention>(
          pass, worker, GEN(cache_before.attention), GEN(norm(each)),
          GEN(product("qkv")),
          GEN(product("out")), GEN(turning), GEN(bias)GEN(branch(each)))) {
    return;
  }
//% endif
//% elif each.name == "cross"
  cross_attention<GEN(unit.name)_cross>(
      pass, worker, GEN(cache_before.cross), GEN(norm(each)),
      GEN(product("cross_query")),
      GEN(product("cross_out")));
//% elif not packed_block.parallel
  mlp<GEN(unit.name)_mlp>(
      pass, worker, GEN(norm(each)),
      GEN(product("up")),
      GEN(product("down"))GEN(branch(each)));
//% endif
//% endfor
}
//% for each in packed_block.sublayers if each.key_value
GEN("")
struct GEN(unit.name)_source {
  static constexpr int64_t kWidth = GEN(source.width);
GEN(scheme(each, "SourceLayout") | trim("\n"))
  using KeyValue = GEN(each.key_value | kind);
};

void GEN(unit.name)_source(Pass &pass, const Worker &worker) {
//% for each in source_units
GEN(arrays(each))
//% endfor
  extend_source<struct GEN(unit.name)_source>(
      pass, worker, GEN(cache_before.cross), {GEN(each.key_value | value), nullptr, GEN(nexts.key_value | default("nullptr"))});
}
//% endfor
GEN("")
}  // namespace kaoken::KAOKEN_ISA::model_GEN(name)
