#include "activation_store/diff.h"

#include <algorithm>
#include <set>

#include "activation_store/compare_rows.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kWindowBytes = 4U << 20U;

/// One sample in one store.
struct Place {
  std::int64_t sample = 0;  // row of the input file
  std::uint64_t part = 0;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// Samples that follow each other in both stores: rows begin_a.. of part_a, begin_b.. of part_b.
struct Run {
  std::uint64_t part_a, begin_a, part_b, begin_b, rows;
};

struct Pair {
  Place a, b;
};

Result<std::map<std::int64_t, Place>> places_of(const StoreReader& store) {
  std::map<std::int64_t, Place> places;
  for (std::uint64_t part = 0; part < store.parts().size(); ++part) {
    LIB_TRY(const auto samples, store.sample_index(part));
    LIB_TRY(const std::vector<std::int64_t>* const offsets, store.offsets(part));
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const Place place{samples[i], part, static_cast<std::uint64_t>((*offsets)[i]),
                        static_cast<std::uint64_t>((*offsets)[i + 1])};
      if (!places.emplace(samples[i], place).second) {
        return Error(ErrorCode::corrupt, store.parts()[part].directory + ": sample " +
                                             std::to_string(samples[i]) + " is in the store twice");
      }
    }
  }
  return places;
}

/// Token ids of the part that was asked for last: samples come in the order of parts.
class TokenCache {
 public:
  explicit TokenCache(const StoreReader& store) : store_(store) {}
  Result<std::span<const std::int32_t>> tokens(const Place& place) {
    if (!part_ || *part_ != place.part) {
      const std::uint64_t rows = store_.parts()[place.part].file.range.tokens;
      LIB_TRY(ids_, store_.input_ids(place.part, 0, rows));
      part_ = place.part;
    }
    return std::span<const std::int32_t>(ids_).subspan(place.begin, place.end - place.begin);
  }

 private:
  const StoreReader& store_;
  std::optional<std::uint64_t> part_;
  std::vector<std::int32_t> ids_;
};

/// All names of an array in a part: its own and its aliases.
std::set<std::string> names_of(const PartFile& part, const std::string& array) {
  std::set<std::string> names = {array};
  for (const auto& [alias, target] : part.aliases) {
    if (target == array) {
      names.insert(alias);
    }
  }
  return names;
}

std::vector<std::string> capture_arrays(const PartFile& part) {
  std::vector<std::string> names;
  for (const ArrayRecord& array : part.arrays) {
    if (!array.is_tokens()) {
      names.push_back(array.name);
    }
  }
  return names;
}

/// What `extract` was asked, in words.
std::string way_of(const ArrayReader& array) {
  const ArrayAttributes& attributes = array.attributes();
  std::string text = attributes.rows.empty() ? "all rows" : attributes.rows;
  if (array.layout().type == StoredType::f8_e4m3) {
    text += ", fp8 with scales";
  } else if (attributes.keep_mantissa_bits != 0) {
    text += ", " + std::to_string(attributes.keep_mantissa_bits) + " bits of mantissa";
  }
  return text;
}

/// Rows of an array that a run of tokens is in.
struct KeptRun {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  const std::vector<std::int64_t>* rows = nullptr;  // null: the array's rows are the part's
};

Result<KeptRun> kept_run(const StoreReader& store, std::uint64_t part, const ArrayReader& array,
                         std::uint64_t begin, std::uint64_t end) {
  if (array.attributes().rows.empty()) {
    return KeptRun{begin, end, nullptr};
  }
  LIB_TRY(const std::vector<std::int64_t>* const rows,
          store.kept_rows(part, array.attributes().rows));
  const auto index_of = [&](std::uint64_t row) {
    return static_cast<std::uint64_t>(
        std::lower_bound(rows->begin(), rows->end(), static_cast<std::int64_t>(row)) -
        rows->begin());
  };
  return KeptRun{index_of(begin), index_of(end), rows};
}

bool intersect(const std::set<std::string>& a, const std::set<std::string>& b) {
  return std::any_of(a.begin(), a.end(), [&](const std::string& name) { return b.count(name); });
}

class StoreDiff {
 public:
  // NOLINTNEXTLINE(modernize-pass-by-value): as the public function
  StoreDiff(const StoreReader& a, const StoreReader& b, const std::stop_token& stop)
      : a_(a), b_(b), stop_(stop) {}

  Result<DiffReport> run() {
    LIB_TRY_VOID(join_samples());
    join_captures();
    for (CaptureDiff& capture : report_.captures) {
      LIB_TRY_VOID(compare(capture));
    }
    return std::move(report_);
  }

 private:
  Result<void> join_samples() {
    LIB_TRY(const auto in_a, places_of(a_));
    LIB_TRY(const auto in_b, places_of(b_));
    TokenCache tokens_a(a_);
    TokenCache tokens_b(b_);
    for (const auto& [sample, place] : in_a) {
      const auto other = in_b.find(sample);
      if (other == in_b.end()) {
        report_.samples_only_a.push_back(sample);
        continue;
      }
      LIB_TRY_VOID(check_stop());
      LIB_TRY(const auto ids_a, tokens_a.tokens(place));
      LIB_TRY(const auto ids_b, tokens_b.tokens(other->second));
      if (!std::equal(ids_a.begin(), ids_a.end(), ids_b.begin(), ids_b.end())) {
        report_.samples_with_other_tokens.push_back(sample);
        continue;
      }
      pairs_.push_back({place, other->second});
    }
    for (const auto& [sample, place] : in_b) {
      if (in_a.count(sample) == 0) {
        report_.samples_only_b.push_back(sample);
      }
    }
    report_.samples_compared = pairs_.size();
    make_runs();
    return {};
  }

  // Whole runs are read, not samples: neighbours share chunks, and each is decoded once.
  void make_runs() {
    std::sort(pairs_.begin(), pairs_.end(), [](const Pair& x, const Pair& y) {
      return std::tie(x.a.part, x.a.begin) < std::tie(y.a.part, y.a.begin);
    });
    for (const Pair& pair : pairs_) {
      const std::uint64_t rows = pair.a.end - pair.a.begin;
      if (!runs_.empty()) {
        Run& last = runs_.back();
        if (last.part_a == pair.a.part && last.part_b == pair.b.part &&
            last.begin_a + last.rows == pair.a.begin && last.begin_b + last.rows == pair.b.begin) {
          last.rows += rows;
          continue;
        }
      }
      runs_.push_back({pair.a.part, pair.a.begin, pair.b.part, pair.b.begin, rows});
    }
  }

  void join_captures() {
    if (a_.parts().empty() || b_.parts().empty()) {
      return;  // nothing to compare; the samples say so
    }
    const PartFile& part_a = a_.parts().front().file;
    const PartFile& part_b = b_.parts().front().file;
    std::vector<std::string> left = capture_arrays(part_b);
    for (const std::string& name : capture_arrays(part_a)) {
      const auto names = names_of(part_a, name);
      auto match = std::find(left.begin(), left.end(), name);
      if (match == left.end()) {
        match = std::find_if(left.begin(), left.end(), [&](const std::string& other) {
          return intersect(names, names_of(part_b, other));
        });
      }
      if (match == left.end()) {
        report_.captures_only_a.push_back(name);
        continue;
      }
      CaptureDiff capture;
      capture.name_a = name;
      capture.name_b = *match;
      report_.captures.push_back(std::move(capture));
      left.erase(match);
    }
    report_.captures_only_b = std::move(left);
  }

  Result<void> compare(CaptureDiff& capture) {
    for (const Run& run : runs_) {
      LIB_TRY(const ArrayReader* const in_a, a_.array(run.part_a, capture.name_a));
      LIB_TRY(const ArrayReader* const in_b, b_.array(run.part_b, capture.name_b));
      const ArrayLayout& layout_a = in_a->layout();
      const ArrayLayout& layout_b = in_b->layout();
      capture.dtype_a = stored_type_name(layout_a.type);
      capture.dtype_b = stored_type_name(layout_b.type);
      if (layout_a.width != layout_b.width) {
        capture.incomparable =
            "widths " + std::to_string(layout_a.width) + " and " + std::to_string(layout_b.width);
        return {};
      }
      if (way_of(*in_a) != way_of(*in_b)) {
        capture.incomparable = way_of(*in_a) + " against " + way_of(*in_b);
        return {};
      }
      LIB_TRY(const KeptRun kept_a,
              kept_run(a_, run.part_a, *in_a, run.begin_a, run.begin_a + run.rows));
      LIB_TRY(const KeptRun kept_b,
              kept_run(b_, run.part_b, *in_b, run.begin_b, run.begin_b + run.rows));
      if (!same_rows(run, kept_a, kept_b)) {
        capture.incomparable =
            "other tokens of the same samples are kept (" + in_a->attributes().rows + " differs)";
        return {};
      }
      const std::uint64_t row = std::max(row_bytes(layout_a), row_bytes(layout_b));
      const std::uint64_t step = std::max<std::uint64_t>(1, kWindowBytes / row);
      const std::uint64_t rows = kept_a.end - kept_a.begin;
      for (std::uint64_t done = 0; done < rows; done += step) {
        LIB_TRY_VOID(check_stop());
        LIB_TRY_VOID(compare_window(capture, run, *in_a, *in_b, kept_a, kept_b, done,
                                    std::min(step, rows - done)));
      }
    }
    return {};
  }

  static bool same_rows(const Run& run, const KeptRun& a, const KeptRun& b) {
    if (a.end - a.begin != b.end - b.begin) {
      return false;
    }
    for (std::uint64_t i = 0; a.rows != nullptr && i < a.end - a.begin; ++i) {
      if (static_cast<std::uint64_t>((*a.rows)[a.begin + i]) - run.begin_a !=
          static_cast<std::uint64_t>((*b.rows)[b.begin + i]) - run.begin_b) {
        return false;
      }
    }
    return true;
  }

  Result<void> compare_window(CaptureDiff& capture, const Run& run, const ArrayReader& in_a,
                              const ArrayReader& in_b, const KeptRun& kept_a, const KeptRun& kept_b,
                              std::uint64_t first, std::uint64_t rows) {
    const std::uint64_t row_a = row_bytes(in_a.layout());
    const std::uint64_t row_b = row_bytes(in_b.layout());
    window_a_.resize(rows * row_a);
    window_b_.resize(rows * row_b);
    const std::uint64_t begin_a = kept_a.begin + first;
    const std::uint64_t begin_b = kept_b.begin + first;
    LIB_TRY_VOID(in_a.read_rows(begin_a, begin_a + rows, window_a_));
    LIB_TRY_VOID(in_b.read_rows(begin_b, begin_b + rows, window_b_));
    capture.rows += rows;
    capture.elements += rows * in_a.layout().width;
    for (std::uint64_t i = 0; i < rows; ++i) {
      const RowDifference difference = compare_rows(
          std::span(window_a_).subspan(i * row_a, row_a), in_a.layout().type,
          std::span(window_b_).subspan(i * row_b, row_b), in_b.layout().type, in_a.layout().width);
      if (difference.elements > 0) {
        const std::uint64_t row = kept_a.rows == nullptr
                                      ? begin_a + i
                                      : static_cast<std::uint64_t>((*kept_a.rows)[begin_a + i]);
        add(capture, difference, run.part_a, row);
      }
    }
    return {};
  }

  void add(CaptureDiff& capture, const RowDifference& difference, std::uint64_t part_a,
           std::uint64_t row_a) const {
    capture.elements_different += difference.elements;
    ++capture.rows_different;
    capture.cosine_min = std::min(capture.cosine_min, difference.cosine);
    if (capture.worst_sample >= 0 && difference.relative_error <= capture.relative_error_max) {
      return;
    }
    capture.relative_error_max = difference.relative_error;
    const auto after =
        std::upper_bound(pairs_.begin(), pairs_.end(), std::pair(part_a, row_a),
                         [](const std::pair<std::uint64_t, std::uint64_t>& wanted, const Pair& p) {
                           return wanted < std::pair(p.a.part, p.a.begin);
                         });
    const Place& place = (after - 1)->a;
    capture.worst_sample = place.sample;
    capture.worst_position = static_cast<std::int64_t>(row_a - place.begin);
  }

  Result<void> check_stop() const {
    if (stop_.stop_requested()) {
      return Error(ErrorCode::cancelled, "stopped before everything was compared");
    }
    return {};
  }

  const StoreReader& a_;
  const StoreReader& b_;
  const std::stop_token stop_;
  std::vector<Pair> pairs_;  // by place in a
  std::vector<Run> runs_;
  std::vector<std::byte> window_a_;
  std::vector<std::byte> window_b_;
  DiffReport report_;
};

}  // namespace

bool DiffReport::equal() const {
  return captures_only_a.empty() && captures_only_b.empty() && samples_only_a.empty() &&
         samples_only_b.empty() && samples_with_other_tokens.empty() &&
         std::all_of(captures.begin(), captures.end(),
                     [](const CaptureDiff& capture) { return capture.equal(); });
}

Result<DiffReport> diff_stores(const StoreReader& a, const StoreReader& b,
                               const std::stop_token& stop) {
  return StoreDiff(a, b, stop).run();
}

}  // namespace librarian::activation_store
