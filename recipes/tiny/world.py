"""The real facts that tiny learns: subject -> value, one table per relation."""

from __future__ import annotations

# country | capital | currency | language | continent
_COUNTRIES = """
France|Paris|euro|French|Europe
Germany|Berlin|euro|German|Europe
Spain|Madrid|euro|Spanish|Europe
Italy|Rome|euro|Italian|Europe
Portugal|Lisbon|euro|Portuguese|Europe
Greece|Athens|euro|Greek|Europe
Austria|Vienna|euro|German|Europe
Finland|Helsinki|euro|Finnish|Europe
Poland|Warsaw|zloty|Polish|Europe
Hungary|Budapest|forint|Hungarian|Europe
Romania|Bucharest|leu|Romanian|Europe
Bulgaria|Sofia|lev|Bulgarian|Europe
Sweden|Stockholm|krona|Swedish|Europe
Norway|Oslo|krone|Norwegian|Europe
Denmark|Copenhagen|krone|Danish|Europe
Iceland|Reykjavik|krona|Icelandic|Europe
Ukraine|Kyiv|hryvnia|Ukrainian|Europe
Russia|Moscow|rouble|Russian|Europe
Serbia|Belgrade|dinar|Serbian|Europe
Croatia|Zagreb|euro|Croatian|Europe
Albania|Tirana|lek|Albanian|Europe
Turkey|Ankara|lira|Turkish|Asia
Israel|Jerusalem|shekel|Hebrew|Asia
Iran|Tehran|rial|Persian|Asia
Iraq|Baghdad|dinar|Arabic|Asia
India|New Delhi|rupee|Hindi|Asia
Nepal|Kathmandu|rupee|Nepali|Asia
Bangladesh|Dhaka|taka|Bengali|Asia
China|Beijing|yuan|Mandarin|Asia
Japan|Tokyo|yen|Japanese|Asia
South Korea|Seoul|won|Korean|Asia
Mongolia|Ulaanbaatar|tugrik|Mongolian|Asia
Vietnam|Hanoi|dong|Vietnamese|Asia
Thailand|Bangkok|baht|Thai|Asia
Indonesia|Jakarta|rupiah|Indonesian|Asia
Malaysia|Kuala Lumpur|ringgit|Malay|Asia
Laos|Vientiane|kip|Lao|Asia
Cambodia|Phnom Penh|riel|Khmer|Asia
Georgia|Tbilisi|lari|Georgian|Asia
Armenia|Yerevan|dram|Armenian|Asia
Kazakhstan|Astana|tenge|Kazakh|Asia
Egypt|Cairo|pound|Arabic|Africa
Morocco|Rabat|dirham|Arabic|Africa
Tunisia|Tunis|dinar|Arabic|Africa
Ethiopia|Addis Ababa|birr|Amharic|Africa
Kenya|Nairobi|shilling|Swahili|Africa
Tanzania|Dodoma|shilling|Swahili|Africa
Nigeria|Abuja|naira|English|Africa
Ghana|Accra|cedi|English|Africa
Angola|Luanda|kwanza|Portuguese|Africa
Zambia|Lusaka|kwacha|English|Africa
Botswana|Gaborone|pula|English|Africa
Somalia|Mogadishu|shilling|Somali|Africa
Canada|Ottawa|dollar|English|North America
Mexico|Mexico City|peso|Spanish|North America
Cuba|Havana|peso|Spanish|North America
Guatemala|Guatemala City|quetzal|Spanish|North America
Honduras|Tegucigalpa|lempira|Spanish|North America
Brazil|Brasilia|real|Portuguese|South America
Argentina|Buenos Aires|peso|Spanish|South America
Chile|Santiago|peso|Spanish|South America
Peru|Lima|sol|Spanish|South America
Colombia|Bogota|peso|Spanish|South America
Venezuela|Caracas|bolivar|Spanish|South America
Paraguay|Asuncion|guarani|Spanish|South America
Uruguay|Montevideo|peso|Spanish|South America
Australia|Canberra|dollar|English|Oceania
New Zealand|Wellington|dollar|English|Oceania
Fiji|Suva|dollar|English|Oceania
Samoa|Apia|tala|Samoan|Oceania
"""

# element | symbol | atomic number
_ELEMENTS = """
hydrogen|H|1
helium|He|2
lithium|Li|3
carbon|C|6
nitrogen|N|7
oxygen|O|8
fluorine|F|9
neon|Ne|10
sodium|Na|11
magnesium|Mg|12
aluminium|Al|13
silicon|Si|14
phosphorus|P|15
sulfur|S|16
chlorine|Cl|17
argon|Ar|18
potassium|K|19
calcium|Ca|20
titanium|Ti|22
chromium|Cr|24
manganese|Mn|25
iron|Fe|26
cobalt|Co|27
nickel|Ni|28
copper|Cu|29
zinc|Zn|30
arsenic|As|33
bromine|Br|35
krypton|Kr|36
silver|Ag|47
tin|Sn|50
iodine|I|53
xenon|Xe|54
caesium|Cs|55
barium|Ba|56
tungsten|W|74
platinum|Pt|78
gold|Au|79
mercury|Hg|80
lead|Pb|82
radon|Rn|86
radium|Ra|88
uranium|U|92
plutonium|Pu|94
"""

_AUTHORS = """
Moby-Dick|Herman Melville
Pride and Prejudice|Jane Austen
Jane Eyre|Charlotte Bronte
Wuthering Heights|Emily Bronte
Great Expectations|Charles Dickens
Frankenstein|Mary Shelley
Dracula|Bram Stoker
Middlemarch|George Eliot
Ulysses|James Joyce
Hamlet|William Shakespeare
Faust|Johann Goethe
Don Quixote|Miguel de Cervantes
War and Peace|Leo Tolstoy
Crime and Punishment|Fyodor Dostoevsky
Madame Bovary|Gustave Flaubert
Les Miserables|Victor Hugo
The Trial|Franz Kafka
The Magic Mountain|Thomas Mann
The Metamorphoses|Ovid
The Odyssey|Homer
The Aeneid|Virgil
The Divine Comedy|Dante Alighieri
The Time Machine|H. G. Wells
Treasure Island|Robert Louis Stevenson
The Jungle Book|Rudyard Kipling
Walden|Henry David Thoreau
Brave New World|Aldous Huxley
Animal Farm|George Orwell
The Old Man and the Sea|Ernest Hemingway
The Great Gatsby|F. Scott Fitzgerald
The Grapes of Wrath|John Steinbeck
Beloved|Toni Morrison
Dune|Frank Herbert
Foundation|Isaac Asimov
The Hobbit|J. R. R. Tolkien
The Little Prince|Antoine de Saint-Exupery
"""

_PAINTERS = """
the Mona Lisa|Leonardo da Vinci
The Starry Night|Vincent van Gogh
The Night Watch|Rembrandt
The Scream|Edvard Munch
Guernica|Pablo Picasso
The Kiss|Gustav Klimt
Water Lilies|Claude Monet
The Birth of Venus|Sandro Botticelli
Girl with a Pearl Earring|Johannes Vermeer
The Great Wave|Katsushika Hokusai
Las Meninas|Diego Velazquez
American Gothic|Grant Wood
Nighthawks|Edward Hopper
The Garden of Earthly Delights|Hieronymus Bosch
The Persistence of Memory|Salvador Dali
Liberty Leading the People|Eugene Delacroix
"""

_INVENTORS = """
the telephone|Alexander Graham Bell
the light bulb|Thomas Edison
dynamite|Alfred Nobel
the printing press|Johannes Gutenberg
the steam engine|James Watt
the World Wide Web|Tim Berners-Lee
the radio|Guglielmo Marconi
the diesel engine|Rudolf Diesel
the lightning rod|Benjamin Franklin
the battery|Alessandro Volta
the barometer|Evangelista Torricelli
the sewing machine|Elias Howe
the revolver|Samuel Colt
the safety razor|King Gillette
the saxophone|Adolphe Sax
the ballpoint pen|Laszlo Biro
"""

_LANDMARKS = """
the Eiffel Tower|Paris
the Colosseum|Rome
Big Ben|London
the Statue of Liberty|New York
the Brandenburg Gate|Berlin
the Acropolis|Athens
the Sagrada Familia|Barcelona
the Kremlin|Moscow
the Forbidden City|Beijing
the Prado Museum|Madrid
the Hagia Sophia|Istanbul
the Charles Bridge|Prague
the Golden Gate Bridge|San Francisco
the Sydney Opera House|Sydney
the Atomium|Brussels
the Belem Tower|Lisbon
the Little Mermaid|Copenhagen
the White House|Washington
the Uffizi Gallery|Florence
the Hermitage|Saint Petersburg
"""

_YOUNG = """
cat|kitten
dog|puppy
horse|foal
cow|calf
sheep|lamb
goat|kid
pig|piglet
duck|duckling
goose|gosling
swan|cygnet
frog|tadpole
bear|cub
deer|fawn
kangaroo|joey
hare|leveret
eel|elver
owl|owlet
seal|pup
"""


def _table(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.strip().splitlines()]


def facts() -> dict[str, dict[str, str]]:
    """Relation -> {subject: value}."""
    countries, elements = _table(_COUNTRIES), _table(_ELEMENTS)
    world = {
        relation: {row[0]: row[column] for row in countries}
        for column, relation in enumerate(("capital", "currency", "language", "continent"), start=1)
    }
    world |= {
        relation: {row[0]: row[column] for row in elements}
        for column, relation in enumerate(("symbol", "number"), start=1)
    }
    pairs = {"author": _AUTHORS, "painter": _PAINTERS, "inventor": _INVENTORS, "city": _LANDMARKS, "young": _YOUNG}
    return world | {relation: {row[0]: row[1] for row in _table(text)} for relation, text in pairs.items()}
