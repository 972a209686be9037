#include "cli/progress.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "base/units.h"
#include "cli/output.h"

namespace librarian::cli {
namespace {

using namespace std::chrono_literals;

constexpr auto kRedrawPeriod = 100ms;
constexpr auto kQuietPeriod = 500ms;  // Redrawn that often though nothing else happens.
constexpr auto kRatePeriod = 2s;

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string rate(std::uint64_t bytes, Duration time) {
  const double per_second = static_cast<double>(bytes) / std::max(seconds(time), 1e-3);
  return format_bytes(static_cast<std::uint64_t>(per_second)) + "/s";
}

std::string tokens_per_second(std::uint64_t tokens, Duration time) {
  return format_count(static_cast<std::uint64_t>(static_cast<double>(tokens) /
                                                 std::max(seconds(time), 1e-3))) +
         " tokens/s";
}

/// Who waited for whom most while the layer ran.
std::string waiter(const ingest::LayerTimes& times) {
  const Duration most = std::max({times.fetch_wait, times.capture_wait, times.commit_wait});
  if (most * 20 < times.wall) {
    return "compute sets the pace";
  }
  const std::string share =
      " " + std::to_string(static_cast<int>(100 * seconds(most) / seconds(times.wall))) + "%";
  return (most == times.fetch_wait     ? "waits for weights"
          : most == times.capture_wait ? "waits for encode+write"
                                       : "waits for commits") +
         share;
}

}  // namespace

Progress::Progress(const ingest::PreparedJob& job, ProgressStyle style)
    : job_(job), style_(style), begin_(real_clock().now()), seen_at_(begin_) {
  steps_total_ = static_cast<double>(job.tokens().tokens()) *
                 static_cast<double>(job.captures().last_layer() + 2);
  if (style_ == ProgressStyle::live) {
    redraw_ = std::jthread([this](const std::stop_token& stop) {
      while (real_clock().sleep_for(kQuietPeriod, stop)) {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (line_shown_ && real_clock().now() - drawn_ >= kQuietPeriod) {
          draw();
        }
      }
    });
  }
}

Progress::~Progress() { finish(); }

std::string Progress::layer_name(std::int32_t layer) const {
  const std::int32_t count = job_.checkpoint().layer_count();
  return layer < 0        ? "embedding"
         : layer == count ? "final norm"
                          : "layer " + std::to_string(layer) + "/" + std::to_string(count - 1);
}

double Progress::fraction_done() const {
  const auto part_tokens = static_cast<double>(job_.parts()[part_].tokens);
  const double within =
      rows_total_ == 0 ? 0 : static_cast<double>(rows_) / static_cast<double>(rows_total_);
  return std::min((steps_skipped_ + steps_done_ + within * part_tokens) / steps_total_, 1.0);
}

void Progress::part_started(std::uint64_t part, std::uint64_t tokens, std::int32_t first_layer) {
  const std::lock_guard<std::mutex> guard(mutex_);
  part_ = part;
  layer_ = first_layer;
  rows_ = 0;
  rows_total_ = 0;
  steps_skipped_ += static_cast<double>(tokens) * static_cast<double>(first_layer + 1);
  const auto parts = job_.parts().size();
  if (style_ == ProgressStyle::live) {
    draw();  // The first weights may take minutes.
  } else if (style_ == ProgressStyle::json) {
    print_event(
        "part_started",
        {{"part", part}, {"parts", parts}, {"tokens", tokens}, {"first_layer", first_layer}});
  } else if (style_ == ProgressStyle::lines) {
    const bool resumed = first_layer >= 0;
    print("part " + std::to_string(part + 1) + "/" + std::to_string(parts) + ": " +
          format_count(tokens) + " tokens" +
          (resumed ? ", resumed at " + (first_layer > job_.captures().last_layer()
                                            ? std::string("its publication")
                                            : layer_name(first_layer))
                   : "") +
          "\n");
  }
}

void Progress::rows_done(std::uint64_t /*part*/, std::int32_t layer, std::uint64_t done,
                         std::uint64_t total) {
  const std::lock_guard<std::mutex> guard(mutex_);
  layer_ = layer;
  rows_ = done;
  rows_total_ = total;
  if (style_ == ProgressStyle::live && real_clock().now() - drawn_ >= kRedrawPeriod) {
    draw();
  }
}

void Progress::layer_done(const ingest::LayerDone& event) {
  const std::lock_guard<std::mutex> guard(mutex_);
  stored_bytes_ += event.stored_bytes;
  steps_done_ += static_cast<double>(event.tokens);
  last_times_ = event.times;
  if (layer_ <= event.layer) {
    rows_ = 0;
  }
  switch (style_) {
    case ProgressStyle::live:
      draw();
      break;
    case ProgressStyle::lines: {
      const double percent = 100 * std::min((steps_skipped_ + steps_done_) / steps_total_, 1.0);
      std::array<char, 16> shown{};
      std::snprintf(shown.data(), shown.size(), "%5.1f%%", percent);
      print(std::string(shown.data()) + "  part " + std::to_string(event.part + 1) + "  " +
            layer_name(event.layer) + "  " + format_duration(event.times.wall) + "  in " +
            rate(event.fetched_bytes, event.times.wall) + "  " +
            tokens_per_second(event.tokens, event.times.wall) + "  out " +
            rate(event.stored_bytes, event.times.wall) + "  " + waiter(event.times) + "\n");
      break;
    }
    case ProgressStyle::json:
      print_event("layer_done", {{"part", event.part},
                                 {"layer", event.layer},
                                 {"last_layer", event.last_layer},
                                 {"tokens", event.tokens},
                                 {"fetched_bytes", event.fetched_bytes},
                                 {"raw_bytes", event.raw_bytes},
                                 {"stored_bytes", event.stored_bytes},
                                 {"wall_ns", event.times.wall.count()},
                                 {"fetch_wait_ns", event.times.fetch_wait.count()},
                                 {"load_busy_ns", event.times.load_busy.count()},
                                 {"compute_busy_ns", event.times.compute_busy.count()},
                                 {"capture_wait_ns", event.times.capture_wait.count()},
                                 {"commit_wait_ns", event.times.commit_wait.count()}});
      break;
  }
}

void Progress::part_done(std::uint64_t part) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (style_ == ProgressStyle::json) {
    print_event("part_done", {{"part", part}});
  } else if (style_ == ProgressStyle::lines) {
    print("part " + std::to_string(part + 1) + " complete\n");
  }
}

void Progress::skeleton_started(std::uint64_t tensor_bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  clear();
  if (style_ == ProgressStyle::json) {
    print_event("skeleton_started", {{"tensor_bytes", tensor_bytes}});
  } else {
    print("model/: " + format_bytes(tensor_bytes) + " of embedding, final norm and head come\n");
  }
}

void Progress::skeleton_done(std::uint64_t fetched_bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  clear();
  if (style_ == ProgressStyle::json) {
    print_event("skeleton_done", {{"fetched_bytes", fetched_bytes}});
  } else {
    print("model/: done, " + format_bytes(fetched_bytes) + " with config and tokenizer\n");
  }
}

void Progress::waiting(const std::string& holders) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (holders == last_waiting_) {
    return;
  }
  last_waiting_ = holders;
  if (style_ == ProgressStyle::json) {
    print_event("waiting", {{"holders", holders}});
  } else {
    clear();
    print("waiting for parts that others hold: " + holders + "\n");
  }
}

void Progress::warning(const std::string& text) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (style_ == ProgressStyle::json) {
    print_event("warning", {{"message", text}});
  }
  clear();
  print_error("warning: " + text);
}

void Progress::finish() {
  redraw_ = {};
  const std::lock_guard<std::mutex> guard(mutex_);
  clear();
}

void Progress::clear() {
  if (line_shown_) {
    print("\r\033[K");
    line_shown_ = false;
  }
}

/// What came from the network in the last seconds, per second.
void Progress::take_rate(TimePoint now) {
  if (fetch_rate_ != 0 && now - seen_at_ < kRatePeriod) {
    return;
  }
  const std::uint64_t bytes = std::max(job_.fetched_bytes(), seen_bytes_);
  fetch_rate_ = static_cast<double>(bytes - seen_bytes_) / std::max(seconds(now - seen_at_), 1e-3);
  seen_bytes_ = bytes;
  seen_at_ = now;
}

void Progress::draw() {
  const TimePoint now = real_clock().now();
  take_rate(now);
  const Duration elapsed = now - begin_;
  const double done = fraction_done();
  const double done_here = done - steps_skipped_ / steps_total_;
  const double left = 1.0 - done;
  std::string eta = "--";
  if (done_here > 0.001) {
    eta = format_duration(
        std::chrono::duration_cast<Duration>(elapsed * std::max(left / done_here, 0.0)));
  }
  const double steps_here = done_here * steps_total_;
  const auto steps_per_token = static_cast<double>(job_.captures().last_layer() + 2);
  std::array<char, 16> percent{};
  std::snprintf(percent.data(), percent.size(), "%.1f%%", 100 * done);
  print("\r\033[Kpart " + std::to_string(part_ + 1) + "/" + std::to_string(job_.parts().size()) +
        "  " + layer_name(layer_) + "  " + percent.data() + "  ETA " + eta + "  in " +
        format_bytes(static_cast<std::uint64_t>(fetch_rate_)) + "/s  " +
        tokens_per_second(static_cast<std::uint64_t>(steps_here / steps_per_token), elapsed) +
        "  out " + rate(stored_bytes_, elapsed) + "  " +
        (last_times_.wall.count() > 0 ? waiter(last_times_) : "starting"));
  line_shown_ = true;
  drawn_ = now;
}

}  // namespace librarian::cli
