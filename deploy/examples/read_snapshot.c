// SPDX-License-Identifier: Apache-2.0
//
// Reads a twotower snapshot through the installed library: read_snapshot DIRECTORY [ITEM_ID]
//
//     cc read_snapshot.c -o read_snapshot $(pkg-config --cflags --libs twotower_reader)
//
// DIRECTORY is a snapshot or the directory of all. Verifies it, prints what is in it, and the ten
// items that fit best to ITEM_ID (default: the first).
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <twotower_reader.h>

static void print_item(const struct tt_table *items, const struct tt_strings *titles, uint64_t row)
{
    struct tt_id id;
    uint64_t size = 0;
    if (tt_id_of_row(items, row, &id) < 0)
        errx(1, "row %" PRIu64 " has no id", row);
    if (id.bytes)
        printf("%.*s", (int)id.size, id.bytes);
    else
        printf("%" PRIu64, id.integer);
    const char *title = tt_string(titles, row, &size);
    printf("  %.*s\n", (int)size, title ? title : "");
}

int main(int argc, char **argv)
{
    struct tt_reader *r;
    struct tt_table items;
    struct tt_strings titles;
    char error[512];
    if (argc < 2)
        errx(64, "usage: read_snapshot DIRECTORY [ITEM_ID]");
    if (tt_open(&r, argv[1], error, sizeof error) < 0 || tt_verify(r, error, sizeof error) < 0 ||
        tt_table(r, "item", &items, error, sizeof error) < 0)
        errx(1, "%s", error);
    tt_strings(r, "item_titles", &titles, error, sizeof error); // without titles: none are printed
    for (int i = 0; i < tt_n_arrays(r); i++) {
        const struct tt_array *a = tt_array_at(r, i);
        printf("%-40s %-4s", a->name, a->dtype);
        for (int d = 0; d < a->n_dims; d++)
            printf(" %" PRIu64, a->shape[d]);
        printf("\n");
    }

    // What a command line gives may be an integer or a string; the table knows which it has.
    uint64_t row = 0;
    char *end;
    if (argc > 2 && tt_row_of_string(&items, argv[2], strlen(argv[2]), &row) < 0 &&
        (tt_row_of_unsigned(&items, strtoull(argv[2], &end, 10), &row) < 0 || *end))
        errx(1, "no item %s", argv[2]);

    const struct tt_array *emb = tt_find(r, "item_emb.f32.safetensors");
    if (!emb || emb->n_dims != 2 || emb->shape[1] < 1 || row >= emb->shape[0])
        errx(1, "%s: no item vectors", tt_path(r));
    // The last column is the item's bias and popularity; the query's last element is 1.
    const size_t dim = (size_t)emb->shape[1];
    float *query = malloc(dim * sizeof *query);
    if (!query)
        err(1, NULL);
    memcpy(query, (const float *)emb->data + row * dim, (dim - 1) * sizeof *query);
    query[dim - 1] = 1;

    uint32_t rows[10];
    float scores[10];
    const int64_t n =
        tt_topk(&(struct tt_query){.items = emb, .vector = query, .k = 10}, rows, scores);
    printf("\nsnapshot %" PRIu64 ", best for ", tt_snapshot(r));
    print_item(&items, &titles, row);
    for (int64_t i = 0; i < n; i++) {
        printf("%10.5f  ", (double)scores[i]);
        print_item(&items, &titles, rows[i]);
    }
    free(query);
    tt_close(r);
    return n < 0;
}
