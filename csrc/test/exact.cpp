#include "exact.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace stal::test {

namespace {

constexpr double kUnit = 0x1p-24;   // rounding unit of float32
constexpr double kTiny = 0x1p-126;  // smallest normal float32

// Of the dtype: its rounding unit, half its smallest number, and its largest number.
struct Format {
  double unit, smallest, largest;
};
constexpr Format kFormats[] = {{0x1p-24, kTiny, 0x1.fffffep127},
                               {0x1p-8, kTiny, 0x1.fep127},
                               {0x1p-11, 0x1p-25, 65504}};

// Number of elements of a tensor.
int64_t Count(const Case& c, const std::string& tensor) {
  int64_t count = 1;
  for (const int64_t size : SizesOf(c, tensor)) count *= size;
  return count;
}

// Sum of the magnitudes of each row.
std::vector<double> RowSizes(const std::vector<double>& rows, int64_t head_dim) {
  std::vector<double> sizes(rows.size() / head_dim);
  for (size_t i = 0; i < rows.size(); ++i) sizes[i / head_dim] += std::fabs(rows[i]);
  return sizes;
}

struct Attention {
  std::vector<double> p, p_slack;  // probabilities
  std::vector<double> g, g_slack;  // dout . v
  std::vector<double> g_size;      // |dout| . |v|
};

}  // namespace

std::map<std::string, Exact> ComputeExact(const Case& c,
                                          const std::map<std::string, std::vector<double>>& inputs,
                                          const std::vector<uint8_t>& region, double unit) {
  const std::vector<double>& q = inputs.at("q");
  const std::vector<double>& k = inputs.at("k");
  const std::vector<double>& v = inputs.at("v");
  const std::vector<double>& weight = inputs.at("weight");
  const std::vector<double>& dout = inputs.at("dout");
  const Format format = kFormats[static_cast<int>(c.dtype)];
  std::map<std::string, Exact> exact;
  for (const char* name : kOutputs) {
    exact[name] = {std::vector<double>(Count(c, name)), std::vector<double>(Count(c, name))};
  }
  Exact &out = exact["out"], &dq = exact["dq"], &dk = exact["dk"], &dv = exact["dv"],
        &dweight = exact["dweight"];
  const int64_t d = c.head_dim, keys = c.seqlen_k;
  const std::vector<double> q_sizes = RowSizes(q, d), k_sizes = RowSizes(k, d),
                            v_sizes = RowSizes(v, d), dout_sizes = RowSizes(dout, d);
  // Kernels keep 2^-bits of a probability and of a sum of products with it, 2^bits >= keys, and may
  // flush that.
  double lowest = kTiny;
  while (lowest < keys * kTiny) lowest *= 2;
  // Roundings of the longest sums.
  const double sums = (keys + c.seqlen_q * c.entries() + c.heads + 16) * kUnit;
  Attention a;
  for (auto* values : {&a.p, &a.p_slack, &a.g, &a.g_slack, &a.g_size}) values->resize(keys);

  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t first = c.ragged ? c.offsets[b] : b * c.prompts;
    const int64_t last = c.ragged ? c.offsets[b + 1] : first + c.prompts;
    for (int64_t e = first; e < last; ++e) {
      const int64_t prompt = c.ragged ? c.prompt_ids[e] : e;
      const int64_t length = c.key_lengths ? (*c.key_lengths)[prompt] : keys;
      if (length == 0) continue;
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t key0 = (prompt * c.heads + h) * keys * d;
        for (int64_t n = 0; n < c.seqlen_q; ++n) {
          if (!region.empty() && !region[e * c.seqlen_q + n]) continue;
          const int64_t row = ((b * c.heads + h) * c.seqlen_q + n) * d;
          const double w = weight[e * c.seqlen_q + n], scale = c.scale;
          double largest = -std::numeric_limits<double>::infinity(), size = 0, flushed = 0;
          for (int64_t l = 0; l < length; ++l) {
            double s = 0, s_size = 0, g = 0, g_size = 0;
            for (int64_t i = 0; i < d; ++i) {
              const double x = q[row + i], y = k[key0 + l * d + i];
              const double dx = dout[row + i], z = v[key0 + l * d + i];
              s += x * y;
              s_size += std::fabs(x * y);
              g += dx * z;
              g_size += std::fabs(dx * z);
            }
            const double s_flushed = q_sizes[row / d] + k_sizes[key0 / d + l] + d;
            const double g_flushed = dout_sizes[row / d] + v_sizes[key0 / d + l] + d;
            a.p[l] = scale * s;
            a.g[l] = g;
            a.g_size[l] = g_size;
            a.g_slack[l] = g_size * (d + 8) * kUnit + g_flushed * kTiny;
            largest = std::max(largest, a.p[l]);
            size = std::max(size, std::fabs(scale) * s_size);
            flushed = std::max(flushed, std::fabs(scale) * s_flushed * kTiny);
          }
          double sum = 0;
          for (int64_t l = 0; l < length; ++l) sum += a.p[l] = std::exp(a.p[l] - largest);
          // Of a score, and so of the logarithm of a probability; twice, for the sum has it too.
          const double shift = (size * (d + 16) + keys + 16) * kUnit + flushed;
          const double relative = std::expm1(2 * shift) + 3 * format.unit;
          double r = 0, r_slack = 0, r_size = 0;
          for (int64_t l = 0; l < length; ++l) {
            a.p[l] /= sum;
            a.p_slack[l] = a.p[l] * relative + 2 * lowest + unit / 2 / sum;
            r += a.p[l] * a.g[l];
            r_size += a.p[l] * a.g_size[l];
            r_slack += a.p_slack[l] * a.g_size[l] + a.p[l] * a.g_slack[l] + lowest;
          }
          dweight.value[e * c.seqlen_q + n] += r;
          dweight.slack[e * c.seqlen_q + n] += r_slack + r_size * sums;

          const double tiny = (1 + std::fabs(w)) * lowest;
          for (int64_t l = 0; l < length; ++l) {
            const double p = w * a.p[l];
            const double p_slack = std::fabs(w) * (a.p_slack[l] + a.p[l] * sums) + tiny;
            const double ds = scale * p * (a.g[l] - r);
            const double ds_size = std::fabs(p) * (a.g_size[l] + r_size);
            const double ds_slack =
                std::fabs(scale) * (p_slack * (a.g_size[l] + r_size) +
                                    std::fabs(p) * (a.g_slack[l] + r_slack) +
                                    ds_size * (3 * format.unit + sums) + 4 * tiny);
            const int64_t key = key0 + l * d;
            for (int64_t i = 0; i < d; ++i) {
              out.value[row + i] += p * v[key + i];
              out.slack[row + i] += p_slack * std::fabs(v[key + i]) + std::fabs(p) * kTiny + tiny;
              dv.value[key + i] += p * dout[row + i];
              dv.slack[key + i] += p_slack * std::fabs(dout[row + i]) + std::fabs(p) * kTiny + tiny;
              dq.value[row + i] += ds * k[key + i];
              dq.slack[row + i] += ds_slack * std::fabs(k[key + i]) + std::fabs(ds) * kTiny + tiny;
              dk.value[key + i] += ds * q[row + i];
              dk.slack[key + i] += ds_slack * std::fabs(q[row + i]) + std::fabs(ds) * kTiny + tiny;
            }
          }
        }
      }
    }
  }
  for (auto& [name, values] : exact) {
    const Format& stored = name == "dweight" ? kFormats[0] : format;
    for (size_t i = 0; i < values.value.size(); ++i) {
      double& slack = values.slack[i];
      if (slack == 0) continue;  // nothing was added: exactly 0
      slack += std::fabs(values.value[i]) * stored.unit + stored.smallest;
      const bool overflows = std::fabs(values.value[i]) + slack > stored.largest;
      if (overflows) slack = std::numeric_limits<double>::infinity();
    }
  }
  return exact;
}

}  // namespace stal::test
