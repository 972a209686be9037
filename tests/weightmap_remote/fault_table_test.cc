// Everything that servers and networks do wrong, one test per kind: the right bytes, or one clear
// error, within its time; and the table that documents it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fault_run.h"

namespace librarian::weightmap::remote::testing {
namespace {

// How far a report is from what the kind requires; empty: it is as required.
std::string complaint(const FaultKind& kind, const FaultReport& report) {
  std::string text;
  const auto expect = [&](bool good, const std::string& what) { text += good ? "" : what + "; "; };
  expect(report.guards_intact, "wrote outside its destinations");
  switch (kind.required) {
    case FaultOutcome::right_bytes:
      expect(report.result == FaultResult::right_bytes, "must recover");
      break;
    case FaultOutcome::clear_error:
      expect(report.result == FaultResult::error, "must end with an error");
      break;
    case FaultOutcome::undetectable:
      // If it is seen after all, the catalogue is wrong.
      expect(report.result == FaultResult::wrong_bytes, "is detected: put that in the catalogue");
      break;
  }
  if (report.error && kind.code) {
    expect(report.error->code() == *kind.code, std::string("must be ") +
                                                   error_code_name(*kind.code) + ", is " +
                                                   error_code_name(report.error->code()));
  }
  expect(report.took.count() >= kind.setup.waits_at_least_ms, "did not wait as it was told");
  expect(kind.times == 0 || report.struck > 0, "never struck");
  if (report.error) {
    const std::string& message = report.error->message();
    expect(message.find(kUrlSecret) == std::string::npos, "the URL's secret is in the message");
    expect(message.find(" bytes [") != std::string::npos, "the message says not which bytes");
    expect(message.find("; ") != std::string::npos, "the message says not what to do");
  }
  return text.empty() ? text : text + "sentence: " + report.sentence;
}

class FaultTest : public ::testing::TestWithParam<FaultKind> {};

TEST_P(FaultTest, EndsAsRequired) {
  const FaultReport report = play({{&GetParam()}});
  EXPECT_EQ(complaint(GetParam(), report), "") << result_name(report.result);
  std::printf("%5ld ms %s: %s\n", static_cast<long>(report.took.count()),
              result_name(report.result), report.sentence.c_str());
}

INSTANTIATE_TEST_SUITE_P(Kinds, FaultTest, ::testing::ValuesIn(fault_kinds()),
                         [](const auto& kind) { return kind.param.name; });

}  // namespace
}  // namespace librarian::weightmap::remote::testing
