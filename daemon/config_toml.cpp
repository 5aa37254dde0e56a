// SPDX-License-Identifier: Apache-2.0
#include "daemon/config_toml.h"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>

#include <toml++/toml.h>

namespace
{

struct visitor {
    toml_visit_fn visit;
    void *arg;
};

// Seventeen digits at most, the fewest that give the same number back.
std::string float_text(double x)
{
    char digits[64];
    const auto end = std::to_chars(digits, digits + sizeof digits, x).ptr;
    return std::string(digits, end);
}

void visit_table(const visitor &v, const toml::table &table, const std::string &prefix)
{
    for (auto &&[key, node] : table) {
        const std::string name =
            prefix.empty() ? std::string(key.str()) : prefix + "." + std::string(key.str());
        std::string text;
        toml_kind kind = TOML_KIND_OTHER;
        if (node.is_table()) {
            kind = TOML_KIND_TABLE;
        } else if (const auto *s = node.as_string()) {
            kind = TOML_KIND_STRING;
            text = s->get();
        } else if (const auto *i = node.as_integer()) {
            kind = TOML_KIND_INTEGER;
            text = std::to_string(i->get());
        } else if (const auto *f = node.as_floating_point()) {
            kind = TOML_KIND_FLOAT;
            text = float_text(f->get());
        } else if (const auto *b = node.as_boolean()) {
            kind = TOML_KIND_BOOL;
            text = b->get() ? "true" : "false";
        }
        const auto at = key.source().begin, value_at = node.source().begin;
        const toml_value value = {name.c_str(),
                                  kind,
                                  text.c_str(),
                                  text.size(),
                                  static_cast<int>(at.line),
                                  static_cast<int>(at.column),
                                  static_cast<int>(value_at.line),
                                  static_cast<int>(value_at.column)};
        v.visit(v.arg, &value);
        if (const auto *below = node.as_table())
            visit_table(v, *below, name);
    }
}

// A dot may be one table more in a table, and toml++ and visit_table go down by one call for each:
// 60,000 of them were more than the stack. The sample file has 341.
constexpr int DOTS_MAX = 4096;

// False, and where the first dot too many stands, when there are more of them than that.
bool dots_are_few(std::string_view text, toml_error *error)
{
    int dots = 0;
    error->line = error->column = 1;
    for (const char c : text) {
        if (c == '.' && ++dots > DOTS_MAX) {
            std::snprintf(error->message, sizeof error->message,
                          "more than %d dots in the file, which could be tables in tables",
                          DOTS_MAX);
            return false;
        }
        error->column = c == '\n' ? 1 : error->column + 1;
        error->line += c == '\n';
    }
    return true;
}

} // namespace

// No exception may cross into C, so all of them end here.
int toml_visit(const char *bytes, size_t size, toml_visit_fn visit, void *arg,
               struct toml_error *error)
{
    if (!dots_are_few(std::string_view(bytes, size), error))
        return -EINVAL;
    try {
        const toml::table root = toml::parse(std::string_view(bytes, size));
        visit_table({visit, arg}, root, "");
        return 0;
    } catch (const toml::parse_error &e) {
        const auto at = e.source().begin;
        const std::string_view what = e.description();
        error->line = static_cast<int>(at.line);
        error->column = static_cast<int>(at.column);
        std::snprintf(error->message, sizeof error->message, "%.*s", static_cast<int>(what.size()),
                      what.data());
        return -EINVAL;
    } catch (const std::bad_alloc &) {
        return -ENOMEM;
    }
}
