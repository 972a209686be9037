// Commands that look at a store: verify and diff. inspect has its own file.
#include <array>
#include <cstdio>

#include "activation_store/diff.h"
#include "activation_store/store_reader.h"
#include "activation_store/verify.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"

namespace librarian::cli {
namespace {

using activation_store::CaptureDiff;
using activation_store::DiffReport;
using activation_store::StoreState;
using activation_store::VerifyReport;

constexpr std::size_t kListedMax = 20;

std::string number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

/// "1, 2, 3 and 4 more"
std::string sample_list(const std::vector<std::int64_t>& samples) {
  std::string text;
  for (std::size_t i = 0; i < samples.size() && i < kListedMax; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(samples[i]);
  }
  return samples.size() > kListedMax
             ? text + " and " + std::to_string(samples.size() - kListedMax) + " more"
             : text;
}

Json diff_to_json(const DiffReport& report) {
  Json captures = Json::array();
  for (const CaptureDiff& capture : report.captures) {
    captures.push_back({{"name_a", capture.name_a},
                        {"name_b", capture.name_b},
                        {"equal", capture.equal()},
                        {"rows", capture.rows},
                        {"elements", capture.elements},
                        {"elements_different", capture.elements_different},
                        {"rows_different", capture.rows_different},
                        {"relative_error_max", capture.relative_error_max},
                        {"cosine_min", capture.cosine_min},
                        {"worst_sample", capture.worst_sample},
                        {"worst_position", capture.worst_position},
                        {"dtype_a", capture.dtype_a},
                        {"dtype_b", capture.dtype_b},
                        {"incomparable", capture.incomparable}});
  }
  return {{"equal", report.equal()},
          {"samples_compared", report.samples_compared},
          {"captures", captures},
          {"captures_only_a", report.captures_only_a},
          {"captures_only_b", report.captures_only_b},
          {"samples_only_a", report.samples_only_a},
          {"samples_only_b", report.samples_only_b},
          {"samples_with_other_tokens", report.samples_with_other_tokens}};
}

void print_capture(const CaptureDiff& capture) {
  const std::string name =
      capture.name_a == capture.name_b ? capture.name_a : capture.name_a + " / " + capture.name_b;
  if (!capture.incomparable.empty()) {
    print(fact(name, "cannot be compared: " + capture.incomparable));
  } else if (capture.equal()) {
    print(fact(name, "equal, " + format_count(capture.rows) + " rows"));
  } else {
    print(fact(name, format_count(capture.elements_different) + " of " +
                         format_count(capture.elements) + " values differ in " +
                         format_count(capture.rows_different) + " of " +
                         format_count(capture.rows) + " rows; relative error up to " +
                         number(capture.relative_error_max) + ", cosine down to " +
                         number(capture.cosine_min) + ", worst at sample " +
                         std::to_string(capture.worst_sample) + " position " +
                         std::to_string(capture.worst_position)));
    if (capture.dtype_a != capture.dtype_b) {
      print(fact("", capture.dtype_a + " against " + capture.dtype_b));
    }
  }
}

}  // namespace

Result<int> run_verify(const Options& options, const std::stop_token& stop) {
  LIB_TRY(const VerifyReport report,
          activation_store::verify_store(posix_file_system(), options.directories[0], stop));
  if (options.json) {
    Json problems = Json::array();
    for (const auto& problem : report.problems) {
      problems.push_back({{"path", problem.path}, {"message", problem.message}});
    }
    print_event("verify", {{"state", activation_store::store_state_name(report.state)},
                           {"parts_complete", report.parts_complete},
                           {"parts_total", report.parts_total},
                           {"skeleton", activation_store::skeleton_state_name(report.skeleton)},
                           {"files_checked", report.files_checked},
                           {"bytes_checked", report.bytes_checked},
                           {"problems", problems}});
  } else {
    for (const auto& problem : report.problems) {
      print("damaged: " + problem.path + ": " + problem.message + "\n");
    }
    print(options.directories[0] + ": " + std::to_string(report.parts_complete) + " of " +
          std::to_string(report.parts_total) + " parts, " +
          (report.problems.empty() ? "none damaged"
                                   : std::to_string(report.problems.size()) + " problems") +
          " (" + format_count(report.files_checked) + " files, " +
          format_bytes(report.bytes_checked) + " checked); model/ " +
          activation_store::skeleton_state_name(report.skeleton) + "\n");
  }
  return report.state == StoreState::complete ? kExitDone : kExitDamaged;
}

Result<int> run_diff(const Options& options, const std::stop_token& stop) {
  FileSystem& files = posix_file_system();
  LIB_TRY(const activation_store::StoreReader a,
          activation_store::StoreReader::open(files, options.directories[0]));
  LIB_TRY(const activation_store::StoreReader b,
          activation_store::StoreReader::open(files, options.directories[1]));
  LIB_TRY(const DiffReport report, activation_store::diff_stores(a, b, stop));
  if (options.json) {
    print_event("diff", diff_to_json(report));
    return report.equal() ? kExitDone : kExitDamaged;
  }
  for (const CaptureDiff& capture : report.captures) {
    print_capture(capture);
  }
  const auto only = [&](const std::vector<std::string>& names, const std::string& where) {
    for (const std::string& name : names) {
      print(fact(name, "only in " + where));
    }
  };
  only(report.captures_only_a, options.directories[0]);
  only(report.captures_only_b, options.directories[1]);
  if (!report.samples_only_a.empty()) {
    print("samples only in " + options.directories[0] + ": " + sample_list(report.samples_only_a) +
          "\n");
  }
  if (!report.samples_only_b.empty()) {
    print("samples only in " + options.directories[1] + ": " + sample_list(report.samples_only_b) +
          "\n");
  }
  if (!report.samples_with_other_tokens.empty()) {
    print("samples with other tokens: " + sample_list(report.samples_with_other_tokens) + "\n");
  }
  print(std::string(report.equal() ? "equal" : "different") + ": " +
        format_count(report.samples_compared) + " samples compared\n");
  return report.equal() ? kExitDone : kExitDamaged;
}

}  // namespace librarian::cli
