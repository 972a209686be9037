#include "tests/gpu_exec/reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace librarian::gpu_exec {

Rows to_rows(const std::vector<float>& values, std::size_t width) {
  Rows rows;
  for (std::size_t at = 0; at < values.size(); at += width) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(at);
    rows.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(width));
  }
  return rows;
}

double worst_row_error(const std::vector<float>& actual, const Rows& expected) {
  double worst = 0;
  std::size_t at = 0;
  for (const auto& row : expected) {
    double difference = 0;
    double norm = 0;
    for (const double value : row) {
      EXPECT_LT(at, actual.size());
      difference += (actual[at] - value) * (actual[at] - value);
      norm += value * value;
      ++at;
    }
    const double error = std::sqrt(difference / norm);
    worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
  }
  EXPECT_EQ(at, actual.size());
  return worst;
}

Rows reference_linear(const Rows& x, const std::vector<float>& weight,
                      const std::vector<float>* bias, std::size_t outputs) {
  Rows y;
  for (const auto& row : x) {
    std::vector<double> out(outputs);
    for (std::size_t n = 0; n < outputs; ++n) {
      out[n] = bias != nullptr ? (*bias)[n] : 0;
      for (std::size_t k = 0; k < row.size(); ++k) {
        out[n] += row[k] * weight[n * row.size() + k];
      }
    }
    y.push_back(out);
  }
  return y;
}

Rows reference_norm(const Rows& x, const std::vector<float>& weight, const std::vector<float>* bias,
                    const NormSpec& spec) {
  Rows y = x;
  for (auto& row : y) {
    const auto width = static_cast<double>(row.size());
    double mean = 0;
    for (const double value : row) {
      mean += spec.kind == NormKind::layer ? value / width : 0;
    }
    double squares = 0;
    for (const double value : row) {
      squares += (value - mean) * (value - mean);
    }
    const double inverse = 1 / std::sqrt(squares / width + spec.epsilon);
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double factor = spec.one_plus ? 1.0 + weight[i] : weight[i];
      row[i] = (row[i] - mean) * inverse * factor + (bias == nullptr ? 0 : (*bias)[i]);
    }
  }
  return y;
}

namespace {

/// Norm of q or k as one row of all its heads.
/// @param weight  Null: there is no norm but perhaps one without weights.
std::vector<double> norm_heads(const std::vector<double>& row, std::uint32_t heads,
                               const AttentionSpec& spec, const std::vector<float>* weights,
                               const NormSpec& norm) {
  if (spec.qk_norm == QkNorm::unit && spec.rope.rotary_dim != 0) {
    AttentionSpec as_head = spec;
    as_head.qk_norm = QkNorm::head;
    const std::vector<float> ones(spec.head_dim, 1.0F);
    return norm_heads(row, heads, as_head, &ones, {NormKind::rms, false, false, norm.epsilon});
  }
  if (weights == nullptr) {
    return row;
  }
  const std::vector<float>& weight = *weights;
  if (spec.qk_norm == QkNorm::full) {
    return reference_norm({row}, weight, nullptr, norm)[0];
  }
  std::vector<double> out;
  for (std::size_t h = 0; h < heads; ++h) {
    const auto begin = row.begin() + static_cast<std::ptrdiff_t>(h * spec.head_dim);
    const auto from =
        weight.begin() +
        static_cast<std::ptrdiff_t>(spec.qk_norm == QkNorm::head_each ? h * spec.head_dim : 0);
    const std::vector<float> own(from, from + spec.head_dim);
    const Rows head =
        reference_norm({std::vector<double>(begin, begin + spec.head_dim)}, own, nullptr, norm);
    out.insert(out.end(), head[0].begin(), head[0].end());
  }
  return out;
}

}  // namespace

Rows reference_rotate(Rows x, std::uint32_t heads, const AttentionSpec& spec,
                      const std::vector<float>* weight, const NormSpec& norm) {
  const std::size_t half = spec.rope.rotary_dim / 2;
  const std::vector<float> frequencies = rope_frequencies(spec.rope, x.size());
  for (std::size_t position = 0; position < x.size(); ++position) {
    if (!spec.qk_norm_after_rope) {
      x[position] = norm_heads(x[position], heads, spec, weight, norm);
    }
    for (std::size_t h = 0; h < heads; ++h) {
      double* head = x[position].data() + h * spec.head_dim;
      const std::vector<double> before(head, head + spec.head_dim);
      for (std::size_t i = 0; i < half; ++i) {
        const bool pairs = spec.rope.style == RopeStyle::pairs;
        const std::size_t low = pairs ? 2 * i : i;
        const std::size_t high = pairs ? 2 * i + 1 : half + i;
        const float angle = static_cast<float>(position) * frequencies[i];
        const double cosine = std::cos(static_cast<double>(angle)) * spec.rope.cos_sin_multiplier;
        const double sine = std::sin(static_cast<double>(angle)) * spec.rope.cos_sin_multiplier;
        head[low] = before[low] * cosine - before[high] * sine;
        head[high] = before[high] * cosine + before[low] * sine;
      }
    }
    if (spec.qk_norm_after_rope) {
      x[position] = norm_heads(x[position], heads, spec, weight, norm);
    }
  }
  return x;
}

bool reference_sees(const AttentionSpec& spec, std::size_t i, std::size_t j) {
  return (!spec.causal || j <= i) && (spec.window == 0 || (j <= i && j + spec.window > i)) &&
         (spec.chunk == 0 || i / spec.chunk == j / spec.chunk);
}

std::vector<double> reference_attention_row(std::size_t i, const Rows& q, const Rows& k,
                                            const Rows& v, const AttentionSpec& spec,
                                            const std::vector<float>* sinks) {
  const std::size_t d = spec.head_dim;
  const std::size_t value_dim = spec.value_dim();
  std::vector<double> out(spec.heads * value_dim, 0.0);
  const std::size_t group = spec.heads / spec.kv_heads;
  const std::vector<float> slopes =
      spec.alibi ? alibi_slopes(spec.heads) : std::vector<float>(spec.heads, 0.0F);
  for (std::size_t h = 0; h < spec.heads; ++h) {
    const double sink = sinks == nullptr ? -HUGE_VAL : (*sinks)[h];
    std::vector<double> score(k.size(), -HUGE_VAL);
    double top = sink;
    for (std::size_t j = 0; j < k.size(); ++j) {
      if (!reference_sees(spec, i, j)) {
        continue;
      }
      double dot = 0;
      for (std::size_t e = 0; e < d; ++e) {
        dot += q[i][h * d + e] * k[j][h / group * d + e];
      }
      score[j] = dot * spec.scale;
      if (spec.softcap != 0) {
        score[j] = spec.softcap * std::tanh(score[j] / spec.softcap);
      }
      score[j] += slopes[h] * static_cast<double>(j);
      top = std::max(top, score[j]);
    }
    double sum = std::exp(sink - top);
    for (double& value : score) {
      value = std::exp(value - top);
      sum += value;
    }
    for (std::size_t j = 0; j < k.size(); ++j) {
      for (std::size_t e = 0; reference_sees(spec, i, j) && e < value_dim; ++e) {
        out[h * value_dim + e] += score[j] / sum * v[j][h / group * value_dim + e];
      }
    }
  }
  return out;
}

Rows reference_attention(const Rows& q, const Rows& k, const Rows& v, const AttentionSpec& spec,
                         const std::vector<float>* sinks) {
  Rows out;
  for (std::size_t i = 0; i < q.size(); ++i) {
    out.push_back(reference_attention_row(i, q, k, v, spec, sinks));
  }
  return out;
}

namespace {

/// a + b * scale.
Rows sum_of(Rows a, const Rows& b, double scale) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) {
      a[i][j] += b[i][j] * scale;
    }
  }
  return a;
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
    case Activation::gelu_tanh:
      return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::relu_squared:
      return std::max(x, 0.0) * std::max(x, 0.0);
    case Activation::clamped_swish:
      return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
  }
  return NAN;
}

/// One layer's tensors, fused ones taken apart and transposed ones turned.
class Weights {
 public:
  explicit Weights(const TestLayer& layer) {
    const LayerSpec& spec = layer.model.layers[0];
    for (const auto& [key, values] : layer.weights) {
      const std::vector<std::uint64_t> shape = weight_shape(layer.model, spec, key.role);
      for (const WeightPart& part : weight_parts(layer.model, spec, key.role)) {
        const std::uint64_t inputs = std::max<std::uint64_t>(part.inputs, 1);
        std::vector<float>& to = parts_[{part.role, key.expert}];
        for (std::uint64_t n = 0; n < part.outputs; ++n) {
          for (std::uint64_t k = 0; k < inputs; ++k) {
            const std::uint64_t row = part.rows.at(n);
            const bool turned = weight_transposed(spec, key.role) && part.inputs != 0;
            to.push_back(values[turned ? k * shape[1] + row : row * inputs + k]);
          }
        }
      }
    }
  }
  const std::vector<float>* find(WeightKey key) const {
    const auto found = parts_.find(key);
    return found == parts_.end() ? nullptr : &found->second;
  }
  Rows linear(const Rows& x, WeightKey weight, WeightKey bias) const {
    const std::vector<float>& matrix = parts_.at(weight);
    return reference_linear(x, matrix, find(bias), matrix.size() / x[0].size());
  }
  /// `x` where the layer has no such norm.
  Rows norm(const Rows& x, WeightRole weight, WeightRole bias, const NormSpec& spec) const {
    return find(weight) == nullptr ? x : reference_norm(x, *find(weight), find(bias), spec);
  }

 private:
  std::map<WeightKey, std::vector<float>> parts_;
};

Rows reference_mlp(const Weights& weights, const MlpSpec& spec, const Rows& x) {
  const Rows up = weights.linear(x, WeightRole::up_weight, WeightRole::up_bias);
  Rows act = spec.gated ? weights.linear(x, WeightRole::gate_weight, WeightRole::gate_bias) : up;
  for (std::size_t i = 0; i < act.size(); ++i) {
    for (std::size_t j = 0; j < act[i].size(); ++j) {
      act[i][j] = activated(spec.activation, act[i][j]) * (spec.gated ? up[i][j] : 1);
    }
  }
  return weights.linear(act, WeightRole::down_weight, WeightRole::down_bias);
}

struct Heads {
  Rows q, k, v;
};

Heads reference_heads(const Weights& weights, const AttentionSpec& attention, const NormSpec& norm,
                      const Rows& h) {
  return {reference_rotate(weights.linear(h, WeightRole::q_weight, WeightRole::q_bias),
                           attention.heads, attention, weights.find(WeightRole::q_norm), norm),
          reference_rotate(weights.linear(h, WeightRole::k_weight, WeightRole::k_bias),
                           attention.kv_heads, attention, weights.find(WeightRole::k_norm), norm),
          weights.linear(h, WeightRole::v_weight, WeightRole::v_bias)};
}

/// Columns [begin, begin + width) of each of `heads` parts of the rows.
Rows columns_of(const Rows& x, std::size_t heads, std::size_t begin, std::size_t width) {
  Rows out;
  for (const auto& row : x) {
    std::vector<double>& to = out.emplace_back();
    const std::size_t step = row.size() / heads;
    for (std::size_t head = 0; head < heads; ++head) {
      const auto from = row.begin() + static_cast<std::ptrdiff_t>(head * step + begin);
      to.insert(to.end(), from, from + static_cast<std::ptrdiff_t>(width));
    }
  }
  return out;
}

/// Heads of {left, right}.
Rows side_by_side(const Rows& left, const Rows& right, std::size_t heads) {
  Rows out;
  for (std::size_t i = 0; i < left.size(); ++i) {
    std::vector<double>& to = out.emplace_back();
    for (std::size_t head = 0; head < heads; ++head) {
      for (const auto* from : {&left[i], &right[i]}) {
        const auto step = static_cast<std::ptrdiff_t>(from->size() / heads);
        const auto begin = from->begin() + static_cast<std::ptrdiff_t>(head) * step;
        to.insert(to.end(), begin, begin + step);
      }
    }
  }
  return out;
}

Heads reference_latent_heads(const Weights& weights, const AttentionSpec& attention,
                             const Rows& h) {
  const LatentSpec& latent = attention.latent;
  const std::size_t heads = attention.heads;
  const NormSpec norm{NormKind::rms, false, false, latent.epsilon};
  const auto no_bias = WeightRole::q_bias;
  AttentionSpec turned;
  turned.head_dim = latent.rope_dim;
  turned.rope = attention.rope;
  Rows q;
  if (latent.q_rank == 0) {
    q = weights.linear(h, WeightRole::q_weight, no_bias);
  } else {
    const Rows narrow = weights.linear(h, WeightRole::q_a_weight, WeightRole::q_a_bias);
    q = weights.linear(weights.norm(narrow, WeightRole::q_a_norm, no_bias, norm),
                       WeightRole::q_b_weight, no_bias);
  }
  const Rows q_turned = reference_rotate(columns_of(q, heads, latent.nope_dim, latent.rope_dim),
                                         attention.heads, turned, nullptr, norm);
  const Rows kv_a = weights.linear(h, WeightRole::kv_a_weight, WeightRole::kv_a_bias);
  const Rows k_turned = reference_rotate(columns_of(kv_a, 1, latent.kv_rank, latent.rope_dim), 1,
                                         turned, nullptr, norm);
  Rows shared;  // The same for every head.
  for (const auto& row : k_turned) {
    std::vector<double>& to = shared.emplace_back();
    for (std::size_t head = 0; head < heads; ++head) {
      to.insert(to.end(), row.begin(), row.end());
    }
  }
  const Rows kv = weights.linear(
      weights.norm(columns_of(kv_a, 1, 0, latent.kv_rank), WeightRole::kv_a_norm, no_bias, norm),
      WeightRole::kv_b_weight, no_bias);
  return {side_by_side(columns_of(q, heads, 0, latent.nope_dim), q_turned, heads),
          side_by_side(columns_of(kv, heads, 0, latent.nope_dim), shared, heads),
          columns_of(kv, heads, latent.nope_dim, latent.value_dim)};
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// The places of the `k` largest, the largest first.
std::vector<std::int32_t> largest(const std::vector<double>& values, std::size_t k) {
  std::vector<std::int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  order.resize(k);
  return order;
}

std::vector<double> reference_scores(std::vector<double> products, const MoeSpec& moe) {
  double sum = 0;
  for (double& value : products) {
    value = moe.router_cap == 0 ? value : moe.router_cap * std::tanh(value / moe.router_cap);
    value = moe.score == RouterScore::sigmoid ? sigmoid(value) : std::exp(value);
    sum += value;
  }
  for (double& value : products) {
    value /= moe.score == RouterScore::sigmoid ? 1 : sum;
  }
  return products;
}

void reference_groups(const MoeSpec& moe, std::vector<double>& select) {
  const std::size_t size = moe.experts / moe.groups;
  std::vector<double> ranks;
  for (std::size_t group = 0; group < moe.groups; ++group) {
    std::vector<double> of(select.begin() + static_cast<std::ptrdiff_t>(group * size),
                           select.begin() + static_cast<std::ptrdiff_t>((group + 1) * size));
    std::sort(of.rbegin(), of.rend());
    ranks.push_back(of[0] + (moe.group_rank == GroupRank::best ? 0 : of[1]));
  }
  const std::vector<std::int32_t> kept = largest(ranks, moe.top_groups);
  for (std::size_t i = 0; i < select.size(); ++i) {
    if (std::count(kept.begin(), kept.end(), static_cast<std::int32_t>(i / size)) == 0) {
      select[i] = -std::numeric_limits<double>::infinity();
    }
  }
}

/// h -> down(act(gate h) * up h) of one row.
std::vector<double> reference_expert(const Weights& weights, const LayerSpec& layer,
                                     std::uint32_t expert, const std::vector<double>& x) {
  const auto product = [&](WeightRole weight, WeightRole bias, const std::vector<double>& in) {
    return weights.linear({in}, {weight, expert}, {bias, expert})[0];
  };
  const std::vector<double> up =
      product(WeightRole::expert_up_weight, WeightRole::expert_up_bias, x);
  std::vector<double> act =
      product(WeightRole::expert_gate_weight, WeightRole::expert_gate_bias, x);
  const bool clamped = layer.mlp.activation == Activation::clamped_swish;
  for (std::size_t i = 0; i < act.size(); ++i) {
    act[i] = activated(layer.mlp.activation, act[i]) *
             (clamped ? std::clamp(up[i], -7.0, 7.0) + 1 : up[i]);
  }
  return product(WeightRole::expert_down_weight, WeightRole::expert_down_bias, act);
}

std::vector<double> reference_shared(const Weights& weights, const LayerSpec& layer,
                                     const std::vector<double>& x) {
  const WeightRole no_bias = WeightRole::down_bias;  // Of no layer with experts.
  const Rows up = weights.linear({x}, WeightRole::shared_up_weight, no_bias);
  Rows act = weights.linear({x}, WeightRole::shared_gate_weight, no_bias);
  for (std::size_t i = 0; i < act[0].size(); ++i) {
    act[0][i] = activated(layer.mlp.activation, act[0][i]) * up[0][i];
  }
  std::vector<double> out = weights.linear(act, WeightRole::shared_down_weight, no_bias)[0];
  const double factor = layer.moe.shared_gate
                            ? sigmoid(weights.linear({x}, WeightRole::shared_router, no_bias)[0][0])
                            : 1;
  std::for_each(out.begin(), out.end(), [factor](double& value) { value *= factor; });
  return out;
}

Rows reference_moe(const Weights& weights, const LayerSpec& layer, const Rows& x,
                   ReferenceLayer& out) {
  const MoeSpec& moe = layer.moe;
  const Rows products = weights.linear(x, WeightRole::router_weight, WeightRole::router_bias);
  const std::vector<float>* select_bias = weights.find(WeightRole::router_select_bias);
  Rows y;
  for (std::size_t row = 0; row < x.size(); ++row) {
    const std::vector<double> scores = reference_scores(products[row], moe);
    std::vector<double> select = scores;
    for (std::size_t i = 0; select_bias != nullptr && i < select.size(); ++i) {
      select[i] += (*select_bias)[i];
    }
    if (moe.groups > 1) {
      reference_groups(moe, select);
    }
    out.experts.push_back(largest(select, moe.top_k));
    double sum = 0;
    for (const std::int32_t id : out.experts.back()) {
      sum += scores[static_cast<std::size_t>(id)];
    }
    std::vector<double> total(x[row].size(), 0.0);
    if (moe.shared_width != 0) {
      total = reference_shared(weights, layer, x[row]);
    }
    std::vector<double>& factors = out.expert_weights.emplace_back();
    for (const std::int32_t id : out.experts.back()) {
      const double factor =
          scores[static_cast<std::size_t>(id)] / (moe.renormalise ? sum : 1) * moe.multiplier;
      factors.push_back(factor);
      std::vector<double> in = x[row];
      std::for_each(in.begin(), in.end(),
                    [&](double& value) { value *= moe.input_scaled ? factor : 1; });
      const std::vector<double> expert =
          reference_expert(weights, layer, static_cast<std::uint32_t>(id), in);
      for (std::size_t i = 0; i < total.size(); ++i) {
        total[i] += expert[i] * (moe.input_scaled ? 1 : factor);
      }
    }
    y.push_back(std::move(total));
  }
  return y;
}

}  // namespace

ReferenceLayer reference_layer(const TestLayer& layer, const Rows& x) {
  const LayerSpec& spec = layer.model.layers[0];
  const AttentionSpec& attention = spec.attention;
  const NormSpec& norm = layer.model.norm;
  const Weights weights(layer);
  const auto join = [&](const Rows& residual, const Rows& output, WeightRole weight,
                        WeightRole bias) {
    if (spec.residual == Residual::norm_after) {
      return weights.norm(sum_of(residual, output, 1), weight, bias, norm);
    }
    return sum_of(residual, weights.norm(output, weight, bias, norm), spec.residual_multiplier);
  };
  ReferenceLayer out;
  const auto mlp = [&](const Rows& in) {
    return spec.moe.experts != 0 ? reference_moe(weights, spec, in, out)
                                 : reference_mlp(weights, spec.mlp, in);
  };
  const Rows h = weights.norm(x, WeightRole::attention_norm, WeightRole::attention_norm_bias, norm);
  Heads heads = attention.latent.kv_rank != 0 ? reference_latent_heads(weights, attention, h)
                                              : reference_heads(weights, attention, norm, h);
  Rows& q = heads.q;
  for (std::size_t i = 0; attention.temperature_original != 0 && i < q.size(); ++i) {
    const std::size_t steps = (i + attention.temperature_offset) / attention.temperature_original;
    const double factor =
        1 + attention.temperature_beta * std::log(1.0 + static_cast<double>(steps));
    std::for_each(q[i].begin(), q[i].end(), [factor](double& value) { value *= factor; });
  }
  out.attn_out = weights.linear(
      reference_attention(q, heads.k, heads.v, attention, weights.find(WeightRole::sinks)),
      WeightRole::out_weight, WeightRole::out_bias);
  if (spec.residual == Residual::parallel) {
    const Rows m =
        spec.mlp_norm ? weights.norm(x, WeightRole::mlp_norm, WeightRole::mlp_norm_bias, norm) : h;
    out.mlp_out = mlp(m);
    out.resid_post = sum_of(sum_of(x, out.attn_out, spec.residual_multiplier), out.mlp_out,
                            spec.residual_multiplier);
    return out;
  }
  out.resid_mid =
      join(x, out.attn_out, WeightRole::attention_out_norm, WeightRole::attention_out_norm_bias);
  out.mlp_out =
      mlp(weights.norm(out.resid_mid, WeightRole::mlp_norm, WeightRole::mlp_norm_bias, norm));
  out.resid_post =
      join(out.resid_mid, out.mlp_out, WeightRole::mlp_out_norm, WeightRole::mlp_out_norm_bias);
  return out;
}

}  // namespace librarian::gpu_exec
