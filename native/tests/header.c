/* kvmerge.h is C: it compiles as C11 with all warnings, and links. */
#include "kvmerge.h"

#include <stdio.h>
#include <string.h>

int main(void) {
    kvmerge_observer_params params;
    kvmerge_observer * observer = NULL;
    memset(&params, 0, sizeof params);
    if (kvmerge_observer_create(&params, &observer) != KVMERGE_E_ARGUMENT || observer != NULL ||
        kvmerge_last_error()[0] == '\0') {
        return 1;
    }
    printf("kvmerge %s (%s)\n", kvmerge_version(), kvmerge_isa());
    return 0;
}
