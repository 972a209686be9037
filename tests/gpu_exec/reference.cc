#include "tests/gpu_exec/reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

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

Rows reference_norm(const Rows& x, const std::vector<float>& weight, double epsilon) {
  Rows y = x;
  for (auto& row : y) {
    double squares = 0;
    for (const double value : row) {
      squares += value * value;
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(row.size()) + epsilon);
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] *= inverse * weight[i];
    }
  }
  return y;
}

Rows reference_rotate(Rows x, std::uint32_t heads, const AttentionSpec& spec,
                      const std::vector<float>* weight, double epsilon) {
  const std::size_t half = spec.rope.rotary_dim / 2;
  for (std::size_t position = 0; position < x.size(); ++position) {
    for (std::size_t h = 0; h < heads; ++h) {
      const auto begin = x[position].begin() + static_cast<std::ptrdiff_t>(h * spec.head_dim);
      std::vector<double> head(begin, begin + spec.head_dim);
      if (weight != nullptr) {
        head = reference_norm({head}, *weight, epsilon)[0];
      }
      std::vector<double> turned = head;
      for (std::size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(position) * spec.rope.inverse_frequency[i];
        const double cosine = std::cos(static_cast<double>(angle)) * spec.rope.cos_sin_multiplier;
        const double sine = std::sin(static_cast<double>(angle)) * spec.rope.cos_sin_multiplier;
        turned[i] = head[i] * cosine - head[half + i] * sine;
        turned[half + i] = head[half + i] * cosine + head[i] * sine;
      }
      std::copy(turned.begin(), turned.end(), begin);
    }
  }
  return x;
}

Rows reference_attention(const Rows& q, const Rows& k, const Rows& v, const AttentionSpec& spec) {
  Rows out(q.size(), std::vector<double>(q[0].size(), 0.0));
  const std::size_t d = spec.head_dim;
  const std::size_t group = spec.heads / spec.kv_heads;
  for (std::size_t i = 0; i < q.size(); ++i) {
    for (std::size_t h = 0; h < spec.heads; ++h) {
      const std::size_t first = spec.window != 0 && i + 1 > spec.window ? i + 1 - spec.window : 0;
      std::vector<double> score;
      double top = -HUGE_VAL;
      for (std::size_t j = first; j <= i; ++j) {
        double dot = 0;
        for (std::size_t e = 0; e < d; ++e) {
          dot += q[i][h * d + e] * k[j][h / group * d + e];
        }
        score.push_back(dot * spec.scale);
        top = std::max(top, score.back());
      }
      double sum = 0;
      for (double& value : score) {
        value = std::exp(value - top);
        sum += value;
      }
      for (std::size_t j = first; j <= i; ++j) {
        for (std::size_t e = 0; e < d; ++e) {
          out[i][h * d + e] += score[j - first] / sum * v[j][h / group * d + e];
        }
      }
    }
  }
  return out;
}

namespace {

Rows sum_of(Rows a, const Rows& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) {
      a[i][j] += b[i][j];
    }
  }
  return a;
}

}  // namespace

ReferenceLayer reference_layer(const TestLayer& layer, const Rows& x) {
  const LayerSpec& spec = layer.model.layers[0];
  const AttentionSpec& attention = spec.attention;
  const double epsilon = layer.model.norm_epsilon;
  const auto optional = [&](WeightRole role) {
    const auto found = layer.weights.find(role);
    return found == layer.weights.end() ? nullptr : &found->second;
  };
  const auto linear = [&](const Rows& in, WeightRole weight, WeightRole bias) {
    return reference_linear(in, layer.weights.at(weight), optional(bias),
                            weight_shape(layer.model, spec, weight)[0]);
  };
  ReferenceLayer out;
  const Rows h = reference_norm(x, layer.weights.at(WeightRole::attention_norm), epsilon);
  const Rows q =
      reference_rotate(linear(h, WeightRole::q_weight, WeightRole::q_bias), attention.heads,
                       attention, optional(WeightRole::q_norm), epsilon);
  const Rows k =
      reference_rotate(linear(h, WeightRole::k_weight, WeightRole::k_bias), attention.kv_heads,
                       attention, optional(WeightRole::k_norm), epsilon);
  const Rows v = linear(h, WeightRole::v_weight, WeightRole::v_bias);
  out.attn_out =
      linear(reference_attention(q, k, v, attention), WeightRole::out_weight, WeightRole::out_bias);
  out.resid_mid = sum_of(x, out.attn_out);
  const Rows m = reference_norm(out.resid_mid, layer.weights.at(WeightRole::mlp_norm), epsilon);
  Rows gate = linear(m, WeightRole::gate_weight, WeightRole::gate_bias);
  const Rows up = linear(m, WeightRole::up_weight, WeightRole::up_bias);
  for (std::size_t i = 0; i < gate.size(); ++i) {
    for (std::size_t j = 0; j < gate[i].size(); ++j) {
      gate[i][j] = gate[i][j] / (1 + std::exp(-gate[i][j])) * up[i][j];
    }
  }
  out.mlp_out = linear(gate, WeightRole::down_weight, WeightRole::down_bias);
  out.resid_post = sum_of(out.resid_mid, out.mlp_out);
  return out;
}

}  // namespace librarian::gpu_exec
